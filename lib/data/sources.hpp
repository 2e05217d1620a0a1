#pragma once
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/index.hpp"

/// The kinds of sources that are scanned into an index; open_dataset() chooses. All paths are absolute.
namespace allosaur::data {

/// Whether a path ends like an image file, in upper or lower case.
bool has_image_extension(const std::filesystem::path& path);
/// The extensions, for messages: ".jpg, .jpeg, ...".
std::string image_extensions();

/// The text of a list or table, without the mark that Windows puts before UTF-8; "" when there is no such file. Throws
/// core::InputError when it cannot be read.
std::string read_list(const std::filesystem::path& file);

/// Class names in the order of `labels.txt` in `folder` or the one above it; empty when there is none.
std::vector<std::string> read_class_order(const std::filesystem::path& folder);
/// Adds the stamps of the files that it looks for.
void stamp_class_order(const std::filesystem::path& folder, std::vector<Stamp>& stamps);

std::unique_ptr<Scanner> scan_folder(const std::filesystem::path& folder);
/// `shards`: tar files in order.
std::unique_ptr<Scanner> scan_tars(std::vector<std::filesystem::path> shards);
/// A list file: a path a line (.txt), CSV, TSV, JSON or JSON lines; rows that cannot be used are problems. A line of a
/// .txt that ends like no image file, but does so without its last word, is a path and a class. Of a table,
/// a first row that names its columns (path, file, file_name, filename, image or key; class, label, cls, target or
/// wnid) says which are meant, else they are the first two. Of JSON, an array (or its member `images` or `labels`) of
/// objects with such members, of pairs, or of strings.
std::unique_ptr<Scanner> scan_list(const std::filesystem::path& list);
bool is_list(const std::filesystem::path& file);
/// `index`: that of packed images. Images whose place is none are problems. Throws core::StorageError naming the file
/// that is damaged, core::InputError when it is not the index of packed images.
std::unique_ptr<Scanner> scan_packed(const std::filesystem::path& index);

/// The images of an index. `root`: the folder that keys of whole files are relative to; `containers`: where those of
/// the index are read. An image whose bytes are not those that were indexed is broken.
std::shared_ptr<const Dataset> indexed_images(std::shared_ptr<const Index> index, std::filesystem::path root,
                                              std::vector<std::string> containers, bool labelled);

}  // namespace allosaur::data
