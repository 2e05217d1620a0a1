#pragma once
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <malloc.h>

#include <fmt/format.h>

namespace allosaur::bench {

template <class Body>
double seconds(const Body& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

inline double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// A line of /proc/self/status, in MiB.
inline double status_mib(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(key + ":")) return std::atof(line.c_str() + key.size() + 1) / 1024;
  return 0;
}

/// The memory that a call needs at its worst beyond what was held before, in MiB.
template <class Body>
double peak_mib(const Body& body) {
  malloc_trim(0);
  std::ofstream("/proc/self/clear_refs") << "5";  // resets the high-water mark
  const double before = status_mib("VmRSS");
  body();
  return status_mib("VmHWM") - before;
}

struct Comparison {
  double ours, theirs, ratio;  // median seconds, and the median of theirs / ours of neighbouring runs
};

/// Runs both in turn, once unmeasured.
template <class Ours, class Theirs>
Comparison compare(int repeats, const Ours& ours, const Theirs& theirs) {
  std::vector<double> a, b, ratios;
  ours();
  theirs();
  for (int i = 0; i < repeats; ++i) {
    a.push_back(seconds(ours));
    b.push_back(seconds(theirs));
    ratios.push_back(b.back() / a.back());
  }
  return {median(a), median(b), median(ratios)};
}

}  // namespace allosaur::bench
