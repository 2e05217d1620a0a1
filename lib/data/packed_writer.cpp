#include "data/packed_writer.hpp"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <iterator>
#include <numeric>
#include <optional>
#include <system_error>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "comm/coordinate.hpp"
#include "core/error.hpp"
#include "core/files.hpp"
#include "core/thread_pool.hpp"
#include "data/packed.hpp"
#include "data/packed_part.hpp"
#include "io/sharded_array.hpp"

namespace allosaur::data {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kLengthsABlock = 1 << 16;

std::int64_t* integers(const at::Tensor& column) {
  return column.mutable_data_ptr<std::int64_t>();
}

/// Images with the part they belong to: in the caller's split over ranks, or in the writer's.
struct Rows {
  at::Tensor row, length, part;  // i64 [images]
  PackedColumns columns;
};

/// Collective. Encoded bytes of these images.
at::Tensor read_lengths(comm::Communicator& group, const Dataset& dataset, std::span<const std::int64_t> indices,
                        const PackConfig& config, const PackHooks& hooks) {
  const auto n = std::ssize(indices);
  const at::Tensor lengths = at::empty({n}, at::kLong);
  comm::coordinate(group, [&] {
    for (std::int64_t first = 0; first < n; first += kLengthsABlock) {
      core::parallel_for(config.threads, std::min(kLengthsABlock, n - first), [&](std::int64_t i) {
        integers(lengths)[first + i] = dataset.length(indices[static_cast<std::size_t>(first + i)]);
      });
      hooks.alive();
    }
  });
  return lengths;
}

/// Collective. Numbers the images by part: one ends where the sum of all sizes so far passes a multiple of its bytes,
/// so that an image of another size moves few of the ends behind it. Sets `part`; returns the number of parts.
std::int64_t number_parts(comm::Communicator& group, const at::Tensor& lengths, const PackConfig& config,
                          at::Tensor& part) {
  constexpr int kHalvings = 6;
  const std::int64_t n = lengths.size(0);
  const at::Tensor sizes = lengths.clamp_min(std::max<std::int64_t>(1, config.part_bytes / config.part_images));
  const auto mine = sizes.sum().item<std::int64_t>();
  const std::int64_t total = group.sum(mine);
  std::int64_t part_bytes = config.part_bytes;
  for (int i = 0; i < kHalvings && total / part_bytes < config.wanted_parts; ++i) part_bytes = (part_bytes + 1) / 2;

  std::int64_t end = group.exclusive_scan(mine), ended = 0;
  part = at::empty({n}, at::kLong);
  for (std::int64_t i = 0; i < n; ++i) {
    integers(part)[i] = ended;
    const std::int64_t begin = end;
    end += integers(sizes)[i];
    if (end / part_bytes > begin / part_bytes) ++ended;
  }
  part += group.exclusive_scan(ended);
  return group.max(n == 0 ? 0 : integers(part)[n - 1] + 1);
}

/// Sends rows of tables to other ranks, those of one rank together and in their order; receives in rank order.
class Exchange {
 public:
  /// Collective. `destination`: i64 [rows], a rank.
  Exchange(comm::Communicator& group, const at::Tensor& destination)
      : group_(group), order_(at::argsort(destination, /*stable=*/true, /*dim=*/0, /*descending=*/false)) {
    const at::Tensor counts = at::bincount(destination, {}, group.size());
    sent_.assign(integers(counts), integers(counts) + group.size());
    received_ = group_.swap(sent_);
  }

  /// Collective, like the next two.
  at::Tensor operator()(const at::Tensor& values) const {
    const at::Tensor sent = values.index_select(0, order_);
    at::Tensor received =
        at::empty({std::accumulate(received_.begin(), received_.end(), std::int64_t{0})}, values.options());
    group_.all_to_all(sent, sent_, received, received_);
    return received;
  }

  std::vector<std::string> operator()(const std::vector<std::string>& values) const {
    std::string sent;
    std::vector<std::int64_t> bytes_sent;
    for (std::int64_t i = 0; const std::int64_t count : sent_) {
      const std::size_t before = sent.size();
      for (const std::int64_t end = i + count; i < end; ++i) {
        sent += values.at(static_cast<std::size_t>(integers(order_)[i]));
        sent += '\0';  // which no string in a file of ours contains
      }
      bytes_sent.push_back(static_cast<std::int64_t>(sent.size() - before));
    }
    const std::vector<std::int64_t> bytes_received = group_.swap(bytes_sent);
    std::string received(
        static_cast<std::size_t>(std::accumulate(bytes_received.begin(), bytes_received.end(), std::int64_t{0})), '\0');
    group_.all_to_all(std::span(sent), bytes_sent, std::span(received), bytes_received);
    std::vector<std::string> strings;
    for (std::size_t begin = 0; begin < received.size(); begin += strings.back().size() + 1) {
      strings.emplace_back(received.c_str() + begin);
    }
    return strings;
  }

  Rows operator()(const Rows& rows) const {
    Rows received{(*this)(rows.row), (*this)(rows.length), (*this)(rows.part), {}};
    for (const auto& [name, values] : rows.columns.numbers)
      received.columns.numbers.emplace_back(name, (*this)(values));
    for (const auto& [name, values] : rows.columns.strings)
      received.columns.strings.emplace_back(name, (*this)(values));
    return received;
  }

 private:
  comm::Communicator& group_;
  at::Tensor order_;  // i64 [rows]
  std::vector<std::int64_t> sent_, received_;
};

/// The part that begins with row `first` of a rank's rows.
Part part_at(const Rows& rows, std::int64_t first, const fs::path& index) {
  const std::int64_t number = integers(rows.part)[first];
  const std::int64_t* end =
      std::upper_bound(integers(rows.part) + first, integers(rows.part) + rows.part.size(0), number);
  const at::Tensor places = at::arange(first, end - integers(rows.part), at::kLong);
  return {packed_part_file(index, number), rows.row.index_select(0, places), rows.length.index_select(0, places),
          select(rows.columns, places)};
}

/// The number in the name of a part of `index`, or of what is left of one under a temporary name.
std::optional<std::int64_t> part_number(const fs::path& index, const std::string& name) {
  const std::string stem = index.stem().string() + "-bytes.";
  if (!name.starts_with(stem)) return {};
  std::int64_t number = 0;
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(name.data() + stem.size(), end, number);
  const std::string_view extension(rest, end);
  if (error != std::errc() || (extension != ".h5" && extension != ".h5.tmp")) return {};
  return number;
}

void remove_file(const fs::path& file) {
  std::error_code error;
  fs::remove(file, error);
  if (error) throw core::StorageError(fmt::format("{} cannot be removed: {}.", file.string(), error.message()));
}

/// Removes the parts from number `parts` on, and half-written ones.
void remove_leftovers(const fs::path& index, std::int64_t parts) {
  const fs::path folder = core::folder_of(index);
  std::vector<fs::path> leftovers;
  std::error_code error;
  for (fs::directory_iterator files(folder, error); !error && files != fs::directory_iterator();
       files.increment(error)) {
    const auto number = part_number(index, files->path().filename().string());
    if (number && (*number >= parts || files->path().extension() == ".tmp")) leftovers.push_back(files->path());
  }
  if (error) throw core::StorageError(fmt::format("{}: cannot list the folder: {}.", folder.string(), error.message()));
  for (const fs::path& file : leftovers) remove_file(file);
}

/// Collective. The index, from the tables of all parts: each rank joins those of consecutive parts.
void publish_index(comm::Communicator& group, const Dataset& dataset, const PackedColumns& columns,
                   const fs::path& index, std::int64_t parts, const PackHooks& hooks) {
  io::ShardedWriter writer(group, index);
  comm::coordinate(group, [&] {
    PackedColumns joined = empty_image_table(columns);
    std::vector<std::vector<at::Tensor>> pieces(joined.numbers.size());
    std::vector<at::Tensor> shard{at::empty({0}, at::kLong)};
    std::vector<std::int64_t> file_bytes;
    const comm::Range mine = group.share(parts);
    for (std::int64_t part = mine.first; part < mine.last; ++part) {
      PartTable table = read_part_table(packed_part_file(index, part), columns);
      file_bytes.push_back(table.file_bytes);
      shard.push_back(at::full({table.image_count()}, part, at::kLong));
      for (std::size_t i = 0; i < pieces.size(); ++i) pieces[i].push_back(table.images.numbers[i].second);
      for (std::size_t i = 0; i < joined.strings.size(); ++i) {
        std::ranges::move(table.images.strings[i].second, std::back_inserter(joined.strings[i].second));
      }
      hooks.alive();
    }
    writer.write("file_bytes", at::tensor(file_bytes, at::kLong));
    writer.write("shard", at::cat(shard));
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      pieces[i].push_back(joined.numbers[i].second);  // so that there is one to join
      writer.write(joined.numbers[i].first, at::cat(pieces[i]));
    }
    for (const auto& [name, values] : joined.strings) writer.write_strings(name, values);
    writer.write_strings("class_name", group.rank() == 0 ? dataset.class_names() : std::vector<std::string>());
  });
  writer.publish();
}

}  // namespace

PackPlan plan_packed(comm::Communicator& group, const Dataset& dataset, std::span<const std::int64_t> indices,
                     const PackConfig& config, const PackHooks& hooks) {
  const at::Tensor lengths = read_lengths(group, dataset, indices, config, hooks);
  at::Tensor part;
  PackPlan plan{.parts = number_parts(group, lengths, config, part)};
  plan.images = group.sum(lengths.size(0));
  plan.bytes = group.sum(lengths.sum().item<std::int64_t>());
  return plan;
}

PackedResult write_packed(comm::Communicator& group, const Dataset& dataset, std::span<const std::int64_t> indices,
                          const PackedColumns& columns, const fs::path& index, const PackConfig& config,
                          const PackHooks& hooks) {
  Rows rows{
      at::empty({std::ssize(indices)}, at::kLong), read_lengths(group, dataset, indices, config, hooks), {}, columns};
  std::ranges::copy(indices, integers(rows.row));
  PackedResult result;
  result.parts = number_parts(group, rows.length, config, rows.part);
  rows = Exchange(group, rows.part.remainder(group.size()))(rows);

  std::vector<Rejected> rejected;
  std::int64_t done = 0;  // of this rank's images, like what follows
  const std::int64_t total = rows.row.size(0);
  std::vector<std::int64_t> missing;  // first rows of parts
  const auto finish = [&](const Part& part, const PartTable& table) {
    table.add_rejected_to(rejected);
    done += part.rows.size(0);
    ++result.finished;
    result.images += table.image_count();
    result.bytes += table.image_bytes();
    hooks.alive();
  };
  comm::coordinate(group, [&] {
    // It would speak of parts that are replaced.
    if (group.rank() == 0) remove_file(index);
    for (std::int64_t first = 0; first < total;) {
      const Part part = part_at(rows, first, index);
      if (const auto table = find_part(dataset, part, config)) {
        finish(part, *table);
      } else {
        missing.push_back(first);
      }
      first += part.rows.size(0);
    }
  });
  result.taken_over = result.finished;
  hooks.progress(done, total);

  const std::int64_t rounds = group.max(std::ssize(missing));
  bool stopped = false;
  for (std::int64_t round = 0; round < rounds && !stopped; ++round) {
    comm::coordinate(group, [&] {
      if (round >= std::ssize(missing)) return;
      const Part part = part_at(rows, missing[static_cast<std::size_t>(round)], index);
      const auto table = write_part(dataset, part, config, hooks, [&](std::int64_t images) {
        hooks.alive();
        hooks.progress(done + images, total);
      });
      if (table) finish(part, *table);
    });
    stopped = group.max(hooks.stop()) != 0;
  }
  for (std::int64_t* count : {&result.images, &result.bytes, &result.finished, &result.taken_over}) {
    *count = group.sum(*count);
  }
  if (stopped) return result;
  hooks.accept(rejected);
  comm::coordinate(group, [&] {
    if (group.rank() == 0) remove_leftovers(index, result.parts);
  });
  publish_index(group, dataset, columns, index, result.parts, hooks);
  result.complete = true;
  return result;
}

}  // namespace allosaur::data
