#pragma once
#include <filesystem>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "report/chart.hpp"

namespace allosaur::jobs {

/// Local. The lines of a metrics.jsonl that have the key.
std::vector<nlohmann::json> metric_lines(const std::filesystem::path& file, std::string_view key);

/// Local. Draws losses and accuracies (in %) over images seen, from a pretraining's metrics.jsonl, as an SVG picture.
/// `accuracies`: measured elsewhere, drawn too.
void write_curves(const std::filesystem::path& metrics, const std::filesystem::path& svg,
                  const std::vector<report::Curve>& accuracies = {});

}  // namespace allosaur::jobs
