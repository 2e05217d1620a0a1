#include <boost/property_tree/ptree.hpp>
#include <boost/property_tree/xml_parser.hpp>

#include <array>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "report/chart.hpp"
#include "report/contact_sheet.hpp"
#include "testing.hpp"

namespace allosaur::report {
namespace {

/// The points of all polylines of a picture, which must be well-formed XML.
std::vector<std::vector<std::pair<double, double>>> polylines(const std::string& svg) {
  std::istringstream text(svg);
  boost::property_tree::ptree tree;
  boost::property_tree::read_xml(text, tree);
  std::vector<std::vector<std::pair<double, double>>> lines;
  for (const auto& [name, node] : tree.get_child("svg")) {
    if (name != "polyline") continue;
    std::istringstream points(node.get<std::string>("<xmlattr>.points"));
    lines.emplace_back();
    double x = 0, y = 0;
    for (char comma = 0; points >> x >> comma >> y;) lines.back().emplace_back(x, y);
  }
  return lines;
}

TEST_CASE("a chart is XML whose lines go where the values go") {
  const std::string svg = line_chart({{"loss & <more>", {{"total", {{0, 9}, {100, 7}, {200, 6}}}, {"none", {}}}},
                                      {"nothing", {{"none", {}}}},
                                      {"accuracy", {{"k-NN", {{0, 10}, {200, 40}}}}}},
                                     "images");
  const auto lines = polylines(svg);
  REQUIRE(lines.size() == 2);
  REQUIRE(lines[0].size() == 3);
  CHECK(lines[0][1].first - lines[0][0].first == doctest::Approx(lines[0][2].first - lines[0][1].first).epsilon(0.01));
  CHECK(lines[0][1].second - lines[0][0].second ==
        doctest::Approx(2 * (lines[0][2].second - lines[0][1].second)).epsilon(0.01));
  CHECK(lines[1][1].second < lines[1][0].second);  // rises
  CHECK(lines[1][0].second > lines[0][2].second);  // below the first panel
  CHECK(lines[1][0].first == lines[0][0].first);
  CHECK(svg.find("loss &amp; &lt;more>") != std::string::npos);
  CHECK(svg.find("nothing") == std::string::npos);
}

TEST_CASE("charts of one value, of equal values and of none") {
  CHECK(polylines(line_chart({{"one", {{"a", {{5, 3}}}}}}, "x")).at(0).size() == 1);
  CHECK(polylines(line_chart({{"equal", {{"a", {{0, 0}, {1, 0}}}}}}, "x")).at(0).size() == 2);
  CHECK(polylines(line_chart({}, "x")).empty());
}

io::Image plain(int width, int height, std::uint8_t value) {
  io::Image image{.width = width, .height = height, .pixels = {}};
  image.pixels.assign(static_cast<std::size_t>(width * height * 3), value);
  return image;
}

TEST_CASE("a contact sheet holds every picture of every pair") {
  std::vector<std::array<io::Image, 2>> pairs;
  for (int i = 0; i < 3; ++i) pairs.push_back({plain(40, 20, 10), plain(1, 300, 200)});
  const io::Image sheet = io::decode_image(io::encode_png(contact_sheet(pairs, 32, 2)));
  const auto at = [&](int x, int y) { return sheet.pixels[static_cast<std::size_t>(3 * (y * sheet.width + x))]; };
  CHECK(sheet.width == 2 * 64 + 3 * 12);
  CHECK(sheet.height == 2 * 32 + 3 * 12);
  for (const auto& [left, top] : {std::pair(12, 12), std::pair(88, 12), std::pair(12, 56)}) {
    CHECK(at(left + 16, top + 16) == 10);
    CHECK(at(left + 16, top + 2) == 255);  // fitted in, not stretched
    CHECK(at(left + 32 + 15, top + 16) == 200);
  }
  CHECK(at(88 + 16, 56 + 16) == 255);
  CHECK(contact_sheet({}).width > 0);
}

}  // namespace
}  // namespace allosaur::report
