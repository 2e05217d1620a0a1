#include "data/loader.hpp"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <unordered_set>
#include <utility>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/error.hpp"
#include "data/loader_memory.hpp"
#include "data/sampler.hpp"

namespace allosaur::data {
namespace {

constexpr int kMaxAttempts = 100;           // replacements of one broken sample before giving up
constexpr std::int64_t kJudgedFrom = 1000;  // distinct files seen before the broken ones are weighed against them

constexpr auto kRecipeBytes = static_cast<std::int64_t>(sizeof(kernels::CropRecipe));

/// A batch that worker threads are filling.
struct Filling {
  Batch batch;
  std::int64_t left;  ///< images not yet finished
};

}  // namespace

/// Workers take one image at a time, in the order of delivery, from the batches under way; a batch is started when
/// fewer than `prefetch` are under way or waiting to be taken.
struct Loader::Impl {
  Impl(std::shared_ptr<const Dataset> source, const LoaderConfig& settings, int rank, int ranks, std::int64_t first)
      : dataset(std::move(source)),
        config(settings),
        sampler(config.source_sizes.empty() ? std::vector{dataset->size()} : config.source_sizes, config.source_weights,
                config.seed),
        memory(std::make_shared<BatchMemory>(static_cast<std::size_t>(std::max(1, config.prefetch)) + 1)),
        next_iteration(first) {
    if (dataset->size() == 0) throw core::InputError("There is no image to load.");
    if (config.group < 1 || config.global_batch < 1 || config.global_batch % ranks != 0 ||
        config.global_batch % config.group != 0) {
      throw core::UsageError(fmt::format(
          "The global batch of {} images does not divide by {} ranks and by groups of {} images (train.batch_size "
          "and train.batch_size_per_gpu).",
          config.global_batch, ranks, config.group));
    }
    const Normalization check(config.augment);  // here, rather than on every worker thread
    images = config.global_batch / ranks;
    first_slot = images * rank;
    seen.resize(static_cast<std::size_t>(dataset->size()));
    try {
      for (int i = 0; i < std::max(1, config.workers); ++i) threads.emplace_back([this] { work(); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~Impl() { stop(); }

  void stop() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    work_ready.notify_all();
    for (std::thread& thread : threads) thread.join();
    threads.clear();
  }

  /// What a thread keeps from image to image.
  struct Worker {
    Augmenter augmenter;
    Sample sample{};
    std::vector<void*> crops{}, recipes{};  // places in tensors of the batch
  };

  void work() {
    std::unique_lock lock(mutex);
    try {
      Worker worker{Augmenter(config.augment)};
      while (true) {
        work_ready.wait(lock, [&] { return stopping || failure || taken < images || can_start(); });
        if (stopping || failure) return;
        if (taken == images || filling.empty()) start_batch();
        Filling& current = filling.back();  // a deque: stays in place while others are added and taken
        const std::int64_t image = taken++;
        lock.unlock();
        fill(current.batch, image, worker);
        lock.lock();
        if (--current.left == 0) batch_ready.notify_all();
      }
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      if (!failure) failure = std::current_exception();
      work_ready.notify_all();
      batch_ready.notify_all();
    }
  }

  bool can_start() const { return filling.size() < static_cast<std::size_t>(std::max(1, config.prefetch)); }

  void start_batch() {
    const AugmentConfig& augmentation = config.augment;
    const std::int64_t patches = std::int64_t{config.mask.patches_per_side} * config.mask.patches_per_side;
    const auto take = [&](at::IntArrayRef sizes, at::ScalarType type) {
      // Page-locked memory is kept for further use by LibTorch, which knows what copies a GPU still has to make.
      if (config.pinned && at::hasCUDA()) return at::empty(sizes, at::TensorOptions(type).pinned_memory(true));
      return memory->take(sizes, type);
    };
    const auto crops = [&](std::int64_t number, std::int64_t side) {
      return take({number * images, augmentation.pixels.channels, side, side}, augmentation.written_type());
    };
    const auto recipes = [&](std::int64_t number) { return take({number * images, kRecipeBytes}, at::kByte); };
    Batch batch;
    batch.iteration = next_iteration++;
    batch.global_crops = crops(2, augmentation.global_crops_size);
    if (!augmentation.finish) batch.global_recipes = recipes(2);
    if (augmentation.local_crops_number > 0) {
      batch.local_crops = crops(augmentation.local_crops_number, augmentation.local_crops_size);
      if (!augmentation.finish) batch.local_recipes = recipes(augmentation.local_crops_number);
    }
    batch.masks = at::empty({2 * images, patches}, at::kBool);
    batch.keys.resize(static_cast<std::size_t>(images));
    filling.push_back({std::move(batch), images});
    taken = 0;
    work_ready.notify_all();
  }

  /// Everything about image `image` of this rank's part; the masks of a group come with its first image here.
  void fill(Batch& batch, std::int64_t image, Worker& worker) {
    const std::int64_t slot = first_slot + image;
    if (image == 0 || slot % config.group == 0) fill_masks(batch, image);

    // Of every crop of the image: its place in tensors of all of them.
    const auto find = [&](std::vector<void*>& all, const at::Tensor& globals, const at::Tensor& locals) {
      all.clear();
      const auto add = [&](const at::Tensor& tensor, std::int64_t number) {
        const std::size_t bytes = static_cast<std::size_t>(tensor.stride(0)) * tensor.element_size();
        all.push_back(static_cast<std::byte*>(tensor.data_ptr()) +
                      static_cast<std::size_t>(number * images + image) * bytes);
      };
      for (std::int64_t c = 0; c < 2; ++c) add(globals, c);
      for (std::int64_t l = 0; l < config.augment.local_crops_number; ++l) add(locals, l);
    };
    find(worker.crops, batch.global_crops, batch.local_crops);
    const std::span<const CropPlan> plans = render_sample(batch.iteration * config.global_batch + slot, worker);
    if (!config.augment.finish) {
      find(worker.recipes, batch.global_recipes, batch.local_recipes);
      for (std::size_t c = 0; c < plans.size(); ++c)
        *static_cast<kernels::CropRecipe*>(worker.recipes[c]) = recipe_of(config.augment, plans[c]);
    }
    batch.keys[static_cast<std::size_t>(image)] = worker.sample.key;
  }

  /// This rank's rows of the masks of the group that image `image` belongs to.
  void fill_masks(Batch& batch, std::int64_t image) const {
    const std::int64_t slot = first_slot + image;
    const std::int64_t within = slot % config.group;
    const std::int64_t count = std::min(config.group - within, images - image);
    const std::int64_t group = batch.iteration * (config.global_batch / config.group) + slot / config.group;
    const at::Tensor masks = make_masks(config.mask, static_cast<int>(config.group), config.seed, group);
    for (std::int64_t crop = 0; crop < 2; ++crop) {
      const auto bytes = static_cast<std::size_t>(count * masks.size(1));
      std::copy_n(masks.data_ptr<bool>() + (crop * config.group + within) * masks.size(1), bytes,
                  batch.masks.data_ptr<bool>() + (crop * images + image) * masks.size(1));
    }
  }

  /// Writes the crops of the image at a global position, or of the replacement of a broken one, which is then the
  /// worker's sample. Returns its plans.
  std::span<const CropPlan> render_sample(std::int64_t position, Worker& worker) {
    std::int64_t index = sampler(position);
    for (std::uint32_t attempt = 1; attempt <= kMaxAttempts; ++attempt) {
      mark_seen(index);
      try {
        dataset->read(index, worker.sample);
        return worker.augmenter.augment(worker.sample.bytes, config.seed, position, worker.crops);
      } catch (const core::InputError& error) {
        reject(index, error.what());
      }
      index = sampler.replacement(position, attempt);
    }
    const std::lock_guard lock(record);
    throw core::InputError(
        fmt::format("None of {} images drawn in turn could be decoded; the first was {}: {} Is this a set of images?",
                    kMaxAttempts, rejected.front().key, rejected.front().reason));
  }

  void mark_seen(std::int64_t index) {
    const std::lock_guard lock(record);
    if (seen[static_cast<std::size_t>(index)]) return;
    seen[static_cast<std::size_t>(index)] = true;
    ++distinct;
  }

  void reject(std::int64_t index, const char* reason) {
    const std::lock_guard lock(record);
    if (!rejected_indices.insert(index).second) return;
    rejected.push_back({dataset->key(index), reason});
    if (config.reject) config.reject(rejected.back().key, rejected.back().reason);
  }

  /// Throws when this rank has met too many broken files.
  void judge() const {
    const std::lock_guard lock(record);
    const auto broken = static_cast<double>(rejected.size());
    if (distinct < std::min(kJudgedFrom, dataset->size()) ||
        broken <= config.max_rejected * static_cast<double>(distinct)) {
      return;
    }
    throw core::InputError(fmt::format(
        "{} of {} images could not be read or decoded, more than the fraction of {} that run.max_rejected allows. "
        "The first is {}: {}",
        rejected.size(), distinct, config.max_rejected, rejected.front().key, rejected.front().reason));
  }

  Batch next() {
    Batch batch;
    {
      std::unique_lock lock(mutex);
      batch_ready.wait(lock, [&] { return failure || (!filling.empty() && filling.front().left == 0); });
      if (failure) std::rethrow_exception(failure);
      batch = std::move(filling.front().batch);
      filling.pop_front();
    }
    work_ready.notify_all();
    judge();
    return batch;
  }

  const std::shared_ptr<const Dataset> dataset;
  const LoaderConfig config;
  const Sampler sampler;
  const std::shared_ptr<BatchMemory> memory;
  std::int64_t images = 0;      // of this rank in an iteration
  std::int64_t first_slot = 0;  // of this rank

  std::mutex mutex;  // guards what follows
  std::condition_variable work_ready, batch_ready;
  std::deque<Filling> filling;
  std::int64_t next_iteration;
  std::int64_t taken = 0;  // images of filling.back() that a worker has taken
  bool stopping = false;
  std::exception_ptr failure;

  mutable std::mutex record;  // guards what follows
  std::vector<bool> seen;
  std::int64_t distinct = 0;
  std::unordered_set<std::int64_t> rejected_indices;
  std::vector<Rejected> rejected;

  std::vector<std::thread> threads;
};

Loader::Loader(std::shared_ptr<const Dataset> dataset, const LoaderConfig& config, int rank, int ranks,
               std::int64_t first)
    : impl_(std::make_unique<Impl>(std::move(dataset), config, rank, ranks, first)) {}
Loader::~Loader() = default;

Batch Loader::next() {
  return impl_->next();
}

std::vector<Rejected> Loader::rejected() const {
  const std::lock_guard lock(impl_->record);
  return impl_->rejected;
}

std::int64_t Loader::distinct_seen() const {
  const std::lock_guard lock(impl_->record);
  return impl_->distinct;
}

}  // namespace allosaur::data
