#include "jobs/curves.hpp"

#include <fstream>
#include <string>

#include <nlohmann/json.hpp>

#include "core/files.hpp"

namespace allosaur::jobs {

using nlohmann::json;

std::vector<json> metric_lines(const std::filesystem::path& file, std::string_view key) {
  std::vector<json> found;
  std::ifstream lines(file);
  for (std::string text; std::getline(lines, text);) {
    json line = json::parse(text, nullptr, false);
    if (line.is_object() && line.contains(key)) found.push_back(std::move(line));
  }
  return found;
}

void write_curves(const std::filesystem::path& metrics, const std::filesystem::path& svg,
                  const std::vector<report::Curve>& accuracies) {
  const auto curve = [&](std::string name, const char* key, double factor) {
    report::Curve result{std::move(name), {}};
    // What a restart computed again stands further down, and replaces what came before it.
    for (const json& line : metric_lines(metrics, key)) {
      if (line.at(key).is_number() && line.contains("images"))
        result.points[line.at("images").get<double>()] = factor * line.at(key).get<double>();
    }
    return result;
  };
  report::Panel accuracy{"accuracy of frozen features, %",
                         {curve("k-NN", "knn_top1", 100), curve("linear", "linear_top1", 100)}};
  accuracy.curves.insert(accuracy.curves.end(), accuracies.begin(), accuracies.end());
  const std::vector<report::Panel> panels = {
      {"total loss", {curve("total", "total_loss", 1)}},
      {"parts of the loss",
       {curve("DINO local", "dino_local_crops_loss", 1), curve("DINO global", "dino_global_crops_loss", 1),
        curve("iBOT", "ibot_loss", 1)}},
      accuracy};
  core::write_atomically(svg, report::line_chart(panels, "images seen"));
}

}  // namespace allosaur::jobs
