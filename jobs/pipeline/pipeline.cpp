#include "jobs/pipeline/pipeline.hpp"

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "comm/coordinate.hpp"
#include "core/files.hpp"
#include "jobs/curate/curate.hpp"
#include "jobs/curves.hpp"
#include "jobs/demo/demo.hpp"
#include "jobs/evaluate/evaluate.hpp"
#include "jobs/pretrain/pretrain.hpp"
#include "jobs/run_directory.hpp"
#include "jobs/sources.hpp"

namespace allosaur::jobs {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kDemo = "pipeline.demo";

/// Runs a phase in its own folder with its own options.
class Phases {
 public:
  Phases(Context& context, const fs::path& output) : context_(context), options_(context.options), output_(output) {}

  core::Options& options() noexcept { return options_; }
  fs::path folder(std::string_view name) const { return output_ / name; }
  /// False when the phase stopped on request.
  bool run(std::string_view name, Outcome (*phase)(Context&)) {
    context_.log.info("-- {} --", name);
    core::Options options = options_;
    options.set("output", folder(name).string());
    Context context{context_.world,    options,          context_.log,       context_.stop,
                    context_.watchdog, context_.threads, context_.node_rank, context_.dry_run};
    const Outcome outcome = phase(context);
    if (!context.dry_run)
      comm::coordinate(context_.world,
                       [&] { context_.log.open(output_); });  // the phase had moved the log to its folder
    return outcome == Outcome::complete;
  }

 private:
  Context& context_;
  core::Options options_;
  fs::path output_;
};

json read_json(const fs::path& file) {
  return fs::exists(file) ? json::parse(core::read_text(file), nullptr, false) : json();
}

/// Accuracy of the best k of k-NN, or of the best head: 0 to 1.
std::optional<double> knn_accuracy(const json& knn, const char* key = "scores") {
  std::optional<double> best;
  if (knn.is_object() && knn.contains(key))
    for (const json& score : knn.at(key)) best = std::max(best.value_or(0), score.at("top1").get<double>());
  return best;
}
std::optional<double> linear_accuracy(const json& linear) {
  if (!linear.is_object()) return std::nullopt;
  return linear.at("best").at("top1").get<double>();
}

/// Rank 0: what a person wants to know at the end, from the files of the phases.
void summarise(core::Log& log, const Phases& phases, const fs::path& output, bool evaluated) {
  const json curation = read_json(phases.folder("curate") / "results" / "curate.json");
  const fs::path metrics = phases.folder("pretrain") / "metrics.jsonl";
  const std::vector<json> lines = metric_lines(metrics, "total_loss");
  std::vector<report::Curve> accuracies;
  json summary{{"images_in", curation.at("pool")},
               {"rejected", curation.at("rejected")},
               {"duplicates_removed", curation.at("duplicates")},
               {"retrieved", curation.at("retrieved")},
               {"images_trained_on", curation.at("images")}};
  log.info("");
  log.info("Summary");
  log.info("  images in the pool              {:>8}   (broken: {})", curation.at("pool").get<int>(),
           curation.at("rejected").get<int>());
  log.info("  duplicates removed              {:>8}", curation.at("duplicates").get<int>());
  log.info("  retrieved                       {:>8}", curation.at("retrieved").get<int>());
  log.info("  curated set, pretrained on      {:>8}", curation.at("images").get<int>());
  if (!lines.empty()) {
    const auto loss = [&](const json& line) { return line.at("total_loss").get<double>(); };
    summary["loss_first"] = loss(lines.front());
    summary["loss_last"] = loss(lines.back());
    summary["images_seen"] = lines.back().at("images");
    log.info("  loss, first and last            {:>8.3f} {:>8.3f}   ({} images seen)", loss(lines.front()),
             loss(lines.back()), lines.back().at("images").get<std::int64_t>());
  }
  if (evaluated) {
    const auto percent = [](std::optional<double> value) {
      return value ? fmt::format("{:>8.2f}", 100 * *value) : "       -";
    };
    const json before = read_json(phases.folder("evaluate-initial") / "results" / "knn.json");
    const json after = read_json(phases.folder("evaluate") / "results" / "knn.json");
    const auto linear_before =
        linear_accuracy(read_json(phases.folder("evaluate-initial") / "results" / "linear.json"));
    const auto linear_after = linear_accuracy(read_json(phases.folder("evaluate") / "results" / "linear.json"));
    log.info("  accuracy, %                     initial pretrained");
    log.info("    k-NN                          {}   {}{}", percent(knn_accuracy(before)), percent(knn_accuracy(after)),
             knn_accuracy(after, "raw_pixels")
                 ? fmt::format("   (raw pixels: {:.2f})", 100 * *knn_accuracy(after, "raw_pixels"))
                 : "");
    log.info("    linear                        {}   {}", percent(linear_before), percent(linear_after));
    const auto store = [&summary](const char* key, std::optional<double> value) {
      if (value) summary[key] = *value;
    };
    store("knn_initial", knn_accuracy(before));
    store("knn_pretrained", knn_accuracy(after));
    store("knn_raw_pixels", knn_accuracy(after, "raw_pixels"));
    store("linear_initial", linear_before);
    store("linear_pretrained", linear_after);
    if (!lines.empty() && metric_lines(metrics, "knn_top1").empty()) {  // none were measured on the way
      const double seen = lines.back().at("images").get<double>();
      const auto compare = [&](const char* curve, std::optional<double> initial, std::optional<double> pretrained) {
        if (initial && pretrained) accuracies.push_back({curve, {{0, 100 * *initial}, {seen, 100 * *pretrained}}});
      };
      compare("k-NN", knn_accuracy(before), knn_accuracy(after));
      compare("linear", linear_before, linear_after);
    }
  }
  core::make_directory(output / "results");
  core::write_atomically(output / "results" / "summary.json", summary.dump(2) + "\n");
  write_curves(metrics, output / "results" / kCurvesFile, accuracies);
  log.info("");
  log.info("Where to look next");
  const auto show = [&](const char* what, const fs::path& where) { log.info("  {:<31} {}", what, where.string()); };
  show("losses and accuracies, drawn", output / "results" / kCurvesFile);
  show("  their numbers", metrics);
  show("copies beside what stays", phases.folder("curate") / "results" / kDuplicatesSheet);
  show("retrieved beside their nearest", phases.folder("curate") / "results" / kRetrievedSheet);
  show("what became of every image", phases.folder("curate") / "results" / "decisions.h5");
  show("the pretrained backbone", phases.folder("pretrain") / kTeacherFile);
  show("checkpoints", phases.folder("pretrain") / "checkpoints");
  log.info("  on a folder of your own images  ./scripts/quickstart --images DIR");
}

class PipelineJob final : public Job {
 public:
  std::string_view name() const override { return "pipeline"; }
  std::string_view summary() const override { return "curate, pretrain and evaluate in one go"; }
  void declare(core::Options& options) const override {
    declare_run_options(options);
    declare_source_options(options);
    options.section("Pipeline");
    options.add(kDemo, false, "Make the demo data set and run on it");
    declare_curate_options(options);
    declare_pretrain_options(options);
    declare_evaluate_options(options);
    declare_demo_options(options);
  }
  Outcome run(Context& context) const override;
};

Outcome PipelineJob::run(Context& context) const {
  const fs::path output = context.options.path("output");
  Phases phases(context, output);
  core::Options& options = phases.options();
  const bool make_demo = options.flag(kDemo);
  if (make_demo) {
    const fs::path demo = phases.folder("demo");
    options.set("curate.pool", (demo / "pool").string());
    options.set("curate.curated", std::vector<std::string>{(demo / "curated").string()});
    options.set("curate.reference", std::vector<std::string>{(demo / "test").string()});
    options.set("curate.truth", (demo / "truth.json").string());
    options.set("evaluate.train", (demo / "train").string());
    options.set("evaluate.test", (demo / "test").string());
  }
  // A mistake is told now, not hours later in the phase that it belongs to.
  comm::coordinate(context.world, [&] {
    check_curate_options(options);
    pretrain_config(options, context.world.size());
  });
  if (context.dry_run) {  // a phase that reads what another writes has no plan yet
    phases.run(make_demo ? "demo" : "curate", make_demo ? demo : curate);
    phases.run("pretrain", pretrain);
    return Outcome::complete;
  }
  const RunDirectory run(context, name(), output);

  if (make_demo && !phases.run("demo", demo)) return Outcome::preempted;
  if (!phases.run("curate", curate)) return Outcome::preempted;

  options.set("train.dataset_path", std::vector{(phases.folder("curate") / kCuratedFolder).string()});
  if (!phases.run("pretrain", pretrain)) return Outcome::preempted;
  const bool finished =
      comm::on_root(context.world, [&] { return fs::exists(phases.folder("pretrain") / kTeacherFile); });
  if (!finished) return Outcome::complete;  // train.stop_at, as pretraining has said

  const bool evaluated = !options.text("evaluate.train").empty();
  if (evaluated) {
    const bool raw_pixels = options.flag("evaluate.raw_pixels");
    options.set("evaluate.raw_pixels", false);  // they are the same for both networks
    options.set("evaluate.weights", (phases.folder("pretrain") / "checkpoints" / "0000000").string());
    if (!phases.run("evaluate-initial", evaluate)) return Outcome::preempted;
    options.set("evaluate.raw_pixels", raw_pixels);
    options.set("evaluate.weights", (phases.folder("pretrain") / kTeacherFile).string());
    if (!phases.run("evaluate", evaluate)) return Outcome::preempted;
  } else {
    context.log.info("Nothing to evaluate on: name labelled folders as evaluate.train and evaluate.test.");
  }
  comm::coordinate(context.world, [&] {
    if (context.world.rank() == 0) summarise(context.log, phases, output, evaluated);
  });
  return Outcome::complete;
}

}  // namespace

std::unique_ptr<Job> make_pipeline_job() {
  return std::make_unique<PipelineJob>();
}

}  // namespace allosaur::jobs
