#pragma once
#include <map>
#include <string>
#include <vector>

namespace allosaur::report {

struct Curve {
  std::string name;
  std::map<double, double> points;  ///< x -> y, both finite
};

/// Curves with a common vertical axis.
struct Panel {
  std::string title;
  std::vector<Curve> curves;
};

/// An SVG picture: panels one below the other over the same horizontal axis. Curves and panels without points are left
/// out; without any there are only axes.
std::string line_chart(const std::vector<Panel>& panels, const std::string& x_title);

}  // namespace allosaur::report
