#include "report/chart.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>

#include <fmt/format.h>

namespace allosaur::report {
namespace {

constexpr double kWidth = 760, kLeft = 64, kRight = 150, kTop = 34, kPanel = 220, kBottom = 50;
constexpr std::array kColours = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b"};

/// From the least to the largest of some values, with round numbers for the ticks between them.
class Axis {
 public:
  void include(double value) {
    low_ = std::min(low_, value);
    high_ = std::max(high_, value);
  }
  /// Widens the range to whole steps of 1, 2 or 5 times a power of ten.
  void finish() {
    if (low_ > high_) low_ = 0, high_ = 1;
    if (low_ == high_) high_ = low_ + std::max(1.0, std::abs(low_));
    const double rough = (high_ - low_) / 5, magnitude = std::pow(10, std::floor(std::log10(rough)));
    step_ = magnitude * (rough <= 2 * magnitude ? 2 : rough <= 5 * magnitude ? 5 : 10);
    low_ = step_ * std::floor(low_ / step_);
    high_ = step_ * std::ceil(high_ / step_);
  }
  double share(double value) const { return (value - low_) / (high_ - low_); }
  std::vector<double> ticks() const {
    std::vector<double> values;
    for (double i = std::round(low_ / step_); i <= std::round(high_ / step_); ++i) values.push_back(i * step_);
    return values;
  }

 private:
  double low_ = std::numeric_limits<double>::infinity(), high_ = -low_, step_ = 1;
};

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) result += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  return result;
}

std::string label(double x, double y, const char* anchor, const std::string& text, const char* colour = "#333") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" fill=\"{}\">{}</text>\n", x, y, anchor, colour,
                     escaped(text));
}

std::string line(double x1, double y1, double x2, double y2) {
  return fmt::format("<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#ddd\"/>\n", x1, y1, x2,
                     y2);
}

std::string draw(const Panel& panel, const Axis& across, double top) {
  Axis up;
  for (const Curve& curve : panel.curves)
    for (const auto& [x, y] : curve.points) up.include(y);
  up.finish();
  const double right = kWidth - kRight, height = kPanel - kTop;
  const auto x_of = [&](double x) { return kLeft + across.share(x) * (right - kLeft); };
  const auto y_of = [&](double y) { return top + kTop + (1 - up.share(y)) * height; };
  std::string svg = label(kLeft, top + kTop - 12, "start", panel.title);
  for (const double y : up.ticks())
    svg += line(kLeft, y_of(y), right, y_of(y)) + label(kLeft - 6, y_of(y) + 4, "end", fmt::format("{:.6g}", y));
  for (const double x : across.ticks()) svg += line(x_of(x), top + kTop, x_of(x), top + kPanel);
  std::size_t number = 0;
  for (const Curve& curve : panel.curves) {
    if (curve.points.empty()) continue;
    const char* colour = kColours[number % kColours.size()];
    std::string points;
    for (const auto& [x, y] : curve.points) points += fmt::format("{:.1f},{:.1f} ", x_of(x), y_of(y));
    svg += fmt::format("<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>\n", points, colour);
    const auto& [x, y] = *curve.points.rbegin();
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\" fill=\"{}\"/>\n", x_of(x), y_of(y), colour);
    svg += label(right + 10, top + kTop + 14 + 18 * static_cast<double>(number), "start",
                 fmt::format("{} {:.4g}", curve.name, y), colour);
    ++number;
  }
  return svg;
}

}  // namespace

std::string line_chart(const std::vector<Panel>& panels, const std::string& x_title) {
  Axis across;
  std::vector<const Panel*> shown;
  for (const Panel& panel : panels) {
    bool empty = true;
    for (const Curve& curve : panel.curves) {
      for (const auto& [x, y] : curve.points) across.include(x);
      empty = empty && curve.points.empty();
    }
    if (!empty) shown.push_back(&panel);
  }
  across.finish();
  const double bottom = kPanel * static_cast<double>(std::max<std::size_t>(1, shown.size()));
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      kWidth, bottom + kBottom);
  double top = 0;
  for (const Panel* panel : shown) {
    svg += draw(*panel, across, top);
    top += kPanel;
  }
  const double right = kWidth - kRight;
  for (const double x : across.ticks())
    svg += label(kLeft + across.share(x) * (right - kLeft), bottom + 18, "middle", fmt::format("{:.6g}", x));
  return svg + label((kLeft + right) / 2, bottom + 38, "middle", x_title) + "</svg>\n";
}

}  // namespace allosaur::report
