#pragma once
#include <filesystem>
#include <functional>
#include <string>

#include "data/index.hpp"

namespace allosaur::data {

/// The index files of one source in a folder. Several jobs may use them at once: a file is never changed.
class KeptIndexes {
 public:
  KeptIndexes(std::filesystem::path folder, const std::filesystem::path& source);

  /// The last one that was made or opened; empty when there is none.
  std::filesystem::path newest() const;
  /// Writes another; throws core::StorageError.
  std::filesystem::path add(const IndexRows& rows) const;
  static void mark_opened(const std::filesystem::path& file);
  /// Removes those that nobody has opened for 30 days.
  void remove_forgotten() const;

 private:
  void visit(const std::function<void(const std::filesystem::path&, std::filesystem::file_time_type)>& show) const;

  std::filesystem::path folder_;
  std::string prefix_;
};

}  // namespace allosaur::data
