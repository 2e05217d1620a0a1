#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "core/log.hpp"
#include "curation/deduplicate.hpp"

namespace allosaur::jobs {

/// Local. Compares the written decisions on the first `pool` images with the text of a truth file.
nlohmann::json score_decisions(const std::filesystem::path& index, std::int64_t pool, const std::string& truth);

/// Says what the search for copies has found, and warns of one group of copies that is suspiciously large.
void report_duplicates(core::Log& log, const curation::Deduplication& found, std::int64_t pool);

/// The table at the end, of what results/curate.json holds.
void print_summary(core::Log& log, const nlohmann::json& summary);

}  // namespace allosaur::jobs
