#include "jobs/export/export.hpp"

#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "jobs/run_directory.hpp"
#include "model/weights.hpp"

namespace allosaur::jobs {
namespace {

class ExportJob final : public Job {
 public:
  std::string_view name() const override { return "export"; }
  std::string_view summary() const override { return "the backbone of a checkpoint as one safetensors file"; }

  void declare(core::Options& options) const override {
    options.section("Export");
    options.add_required("export.checkpoint", "folder of a checkpoint (its teacher), or a .safetensors or .pth file");
    options.add_required("output", "file to write, ending in .safetensors");
    declare_process_options(options);
  }

  Outcome run(Context& context) const override {
    comm::coordinate(context.world, [&] {
      if (context.world.rank() != 0) return;
      const std::filesystem::path checkpoint = context.options.path("export.checkpoint");
      const std::filesystem::path output = std::filesystem::absolute(context.options.path("output"));
      if (output.extension() != ".safetensors") {
        throw core::UsageError(fmt::format("output = {} must be a file that ends in .safetensors.", output.string()));
      }
      const auto backbone = model::load_backbone(checkpoint);
      if (!context.dry_run) {
        core::make_directory(output.parent_path());
        model::save_backbone(output, *backbone);
      }
      const model::VitConfig& shape = backbone->config();
      context.log.info("{} {} the backbone of {}: {} blocks of width {}, patches of {} pixels, {} channels",
                       output.string(), context.dry_run ? "would hold" : "holds", checkpoint.string(), shape.depth,
                       shape.embed_dim, shape.patch_size, shape.in_channels);
    });
    return Outcome::complete;
  }
};

}  // namespace

std::unique_ptr<Job> make_export_job() {
  return std::make_unique<ExportJob>();
}

}  // namespace allosaur::jobs
