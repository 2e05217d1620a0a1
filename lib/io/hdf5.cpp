#include "io/hdf5.hpp"

#include <fcntl.h>
#include <hdf5.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <limits>
#include <mutex>
#include <new>
#include <stdexcept>
#include <type_traits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/error.hpp"
#include "io/disk_file.hpp"

namespace allosaur::io::hdf5 {
namespace {

static_assert(std::is_same_v<hid_t, detail::hid> && std::is_same_v<herr_t, int>);
using detail::Handle;
using detail::hid;
using Space = Handle<H5Sclose>;
using Type = Handle<H5Tclose>;
using Properties = Handle<H5Pclose>;
using Attribute = Handle<H5Aclose>;

/// Held by every function that calls HDF5: its state belongs to the process and the library need not be a thread-safe
/// build. (A thread-safe one keeps the printing of errors switched on or off by thread.)
class Library {
 public:
  Library() : lock_(mutex()) {
    thread_local const bool quiet = H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
    static_cast<void>(quiet);
  }

 private:
  static std::recursive_mutex& mutex() {
    static std::recursive_mutex instance;
    return instance;
  }
  std::scoped_lock<std::recursive_mutex> lock_;
};

/// HDF5's own reason for the last failure: the innermost entry of its error stack.
std::string reason() {
  std::string text;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned depth, const H5E_error2_t* error, void* out) -> herr_t {
        if (depth == 0 && error->desc != nullptr) *static_cast<std::string*>(out) = error->desc;
        return 0;
      },
      &text);
  return text.empty() ? "HDF5 gives no reason" : text;
}

/// HDF5's view of a DiskFile: the driver every file here is opened with. (Locks it has none: files are published whole,
/// and many shared file systems do not know them.)
struct Driver : H5FD_t {
  Driver(int descriptor, std::shared_ptr<int> error) noexcept : H5FD_t{}, disk(descriptor, std::move(error)) {}
  static Driver& of(H5FD_t* file) { return *static_cast<Driver*>(file); }
  static const Driver& of(const H5FD_t* file) { return *static_cast<const Driver*>(file); }

  static H5FD_t* open(const char* name, unsigned flags, hid_t properties, haddr_t /*limit*/) {
    const int mode = (flags & H5F_ACC_RDWR) != 0 ? O_RDWR : O_RDONLY;
    const int create = ((flags & H5F_ACC_CREAT) != 0 ? O_CREAT : 0) | ((flags & H5F_ACC_TRUNC) != 0 ? O_TRUNC : 0);
    const int descriptor = ::open(name, mode | create | O_CLOEXEC, 0666);
    if (descriptor < 0) {
      H5Epush2(H5E_DEFAULT, __FILE__, __func__, __LINE__, H5E_ERR_CLS, H5E_FILE, H5E_CANTOPENFILE, "%s",
               std::strerror(errno));
      return nullptr;
    }
    const auto* error = static_cast<const std::shared_ptr<int>* const*>(H5Pget_driver_info(properties));
    return new (std::nothrow) Driver(descriptor, **error);
  }
  static herr_t close(H5FD_t* file) {
    delete &of(file);
    return 0;
  }
  static herr_t read(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t offset, std::size_t size, void* out) {
    if (of(file).disk.read(offset, {static_cast<std::byte*>(out), size})) return 0;
    H5Epush2(H5E_DEFAULT, __FILE__, __func__, __LINE__, H5E_ERR_CLS, H5E_IO, H5E_READERROR, "%s", std::strerror(errno));
    return -1;
  }
  static herr_t write(H5FD_t* file, H5FD_mem_t, hid_t, haddr_t offset, std::size_t size, const void* bytes) {
    of(file).disk.write(offset, {static_cast<const std::byte*>(bytes), size});
    return 0;
  }
  static herr_t truncate(H5FD_t* file, hid_t, hbool_t) {
    of(file).disk.resize(of(file).end_of_allocated);
    return 0;
  }

  /// Registered once a process. Its settings in a file's properties: const std::shared_ptr<int>*, where errors go.
  static hid id() {
    static const hid registered = [] {
      constexpr H5FD_mem_t kFreeLists[] = H5FD_FLMAP_DICHOTOMY;
      H5FD_class_t c{};
      c.name = "allosaur";
      c.maxaddr = static_cast<haddr_t>(std::numeric_limits<off_t>::max());
      c.fc_degree = H5F_CLOSE_WEAK;
      c.fapl_size = sizeof(const std::shared_ptr<int>*);
      c.open = open;
      c.close = close;
      c.cmp = [](const H5FD_t* a, const H5FD_t* b) { return of(a).disk.compare(of(b).disk); };
      c.query = [](const H5FD_t*, unsigned long* features) -> herr_t {
        *features = H5FD_FEAT_AGGREGATE_METADATA | H5FD_FEAT_ACCUMULATE_METADATA | H5FD_FEAT_DATA_SIEVE |
                    H5FD_FEAT_AGGREGATE_SMALLDATA | H5FD_FEAT_DEFAULT_VFD_COMPATIBLE;
        return 0;
      };
      c.get_eoa = [](const H5FD_t* file, H5FD_mem_t) { return of(file).end_of_allocated; };
      c.set_eoa = [](H5FD_t* file, H5FD_mem_t, haddr_t end) -> herr_t {
        of(file).end_of_allocated = end;
        return 0;
      };
      c.get_eof = [](const H5FD_t* file, H5FD_mem_t) -> haddr_t { return of(file).disk.size(); };
      c.read = read;
      c.write = write;
      c.truncate = truncate;
      std::copy(std::begin(kFreeLists), std::end(kFreeLists), c.fl_map);
      return H5FDregister(&c);
    }();
    return registered;
  }

  DiskFile disk;
  haddr_t end_of_allocated = 0;
};

[[noreturn]] void fail(const std::string& where, std::string_view action) {
  throw core::StorageError(fmt::format("{}: cannot {}: {}.", where, action, reason()));
}

template <class Result>
Result check(Result result, const std::string& where, std::string_view action) {
  if (result < 0) fail(where, action);
  return result;
}

void check_written(const std::shared_ptr<int>& error, const std::string& where) {
  if (*error != 0)
    throw core::StorageError(fmt::format("{}: cannot write the file: {}.", where, std::strerror(*error)));
}

std::string join(const std::string& where, std::string_view name) {
  return fmt::format("{}{}{}", where, where.ends_with('/') ? "" : "/", name);
}

Type float_type(std::size_t bytes, std::size_t exponent_bits, std::size_t mantissa_bits) {
  Type type(H5Tcopy(H5T_IEEE_F32LE));
  H5Tset_fields(type.get(), 8 * bytes - 1, mantissa_bits, exponent_bits, 0, mantissa_bits);
  H5Tset_size(type.get(), bytes);
  H5Tset_ebias(type.get(), (std::size_t{1} << (exponent_bits - 1)) - 1);
  return type;
}

Type type_of(comm::DType dtype) {
  switch (dtype) {
    case comm::DType::u8:
      return Type(H5Tcopy(H5T_STD_U8LE));
    case comm::DType::i32:
      return Type(H5Tcopy(H5T_STD_I32LE));
    case comm::DType::i64:
      return Type(H5Tcopy(H5T_STD_I64LE));
    case comm::DType::f16:
      return float_type(2, 5, 10);
    case comm::DType::bf16:
      return float_type(2, 8, 7);
    case comm::DType::f32:
      return Type(H5Tcopy(H5T_IEEE_F32LE));
    case comm::DType::f64:
      return Type(H5Tcopy(H5T_IEEE_F64LE));
  }
  throw std::logic_error("hdf5: unknown element type");
}

/// Strings are kept with a fixed length, padded with zeros: no heap, so nothing in the file points elsewhere.
Type string_type(std::size_t length) {
  Type type(H5Tcopy(H5T_C_S1));
  H5Tset_size(type.get(), std::max<std::size_t>(length, 1));
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  return type;
}

std::string unpadded(std::string_view padded) {
  return std::string(padded.substr(0, padded.find('\0')));
}

Space make_space(std::span<const std::int64_t> shape, const std::string& where) {
  const std::vector<hsize_t> extent(shape.begin(), shape.end());
  return Space(
      check(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr), where, "describe its shape"));
}

std::vector<std::int64_t> shape_of(hid space, const std::string& where) {
  std::vector<hsize_t> extent(
      static_cast<std::size_t>(check(H5Sget_simple_extent_ndims(space), where, "read its shape")));
  check(H5Sget_simple_extent_dims(space, extent.data(), nullptr), where, "read its shape");
  return {extent.begin(), extent.end()};
}

/// For names such as "a/b": makes the group `a` where it is missing.
Properties link_properties() {
  Properties properties(H5Pcreate(H5P_LINK_CREATE));
  H5Pset_create_intermediate_group(properties.get(), 1);
  H5Pset_char_encoding(properties.get(), H5T_CSET_UTF8);
  return properties;
}

/// Selects rows [first, first + rows) in the file and makes the matching memory space.
struct Selection {
  Space file, memory;
};

Selection select_rows(hid dataset, const comm::Buffer& buffer, std::int64_t first_row, const std::string& where) {
  Selection selection;
  selection.file = Space(check(H5Dget_space(dataset), where, "read its shape"));
  const std::vector<std::int64_t> shape = shape_of(selection.file.get(), where);
  if (shape.empty()) throw core::StorageError(fmt::format("{}: the dataset has no rows (it is a scalar).", where));
  std::int64_t row = 1;
  for (std::size_t axis = 1; axis < shape.size(); ++axis) row *= shape[axis];
  const std::int64_t rows = row == 0 ? 0 : buffer.count / row;
  if (rows * row != buffer.count || first_row < 0 || first_row + rows > shape[0]) {
    throw core::StorageError(fmt::format("{}: the dataset of shape [{}] does not hold {} elements from row {} on.",
                                         where, fmt::join(shape, ", "), buffer.count, first_row));
  }
  std::vector<hsize_t> start(shape.size(), 0), count(shape.begin(), shape.end());
  start[0] = static_cast<hsize_t>(first_row);
  count[0] = static_cast<hsize_t>(rows);
  check(H5Sselect_hyperslab(selection.file.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr), where,
        "select rows");
  selection.memory = make_space({&buffer.count, 1}, where);
  return selection;
}

Properties virtual_layout(std::span<const VirtualSlice> slices, std::span<const std::int64_t> shape,
                          const std::string& where) {
  Properties properties(H5Pcreate(H5P_DATASET_CREATE));
  const Space whole = make_space(shape, where);
  std::vector<std::int64_t> part(shape.begin(), shape.end());
  std::vector<hsize_t> start(shape.size(), 0);
  const bool empty_rows = std::find(shape.begin() + 1, shape.end(), 0) != shape.end();
  for (const VirtualSlice& slice : slices) {
    if (slice.rows == 0 || empty_rows)
      continue;  // HDF5 cannot map nothing; with no slice, the dataset is an ordinary one
    part[0] = slice.rows;
    const std::vector<hsize_t> count(part.begin(), part.end());
    check(H5Sselect_hyperslab(whole.get(), H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr), where,
          "join slices");
    check(H5Pset_virtual(properties.get(), whole.get(), slice.file.c_str(), slice.dataset.c_str(),
                         make_space(part, where).get()),
          where, "join slices");
    start[0] += count[0];
  }
  return properties;
}

std::string read_text(hid attribute, const std::string& where) {
  const Type type(check(H5Aget_type(attribute), where, "read the attribute"));
  if (H5Tget_class(type.get()) != H5T_STRING || H5Tis_variable_str(type.get()) > 0) {
    throw core::StorageError(fmt::format("{}: the attribute is not a text of fixed length.", where));
  }
  std::string text(H5Tget_size(type.get()), '\0');
  check(H5Aread(attribute, type.get(), text.data()), where, "read the attribute");
  return unpadded(text);
}

void write_attribute(hid group, const std::string& name, const Type& type, const void* value,
                     const std::string& where) {
  if (H5Aexists(group, name.c_str()) > 0) check(H5Adelete(group, name.c_str()), where, "replace the attribute");
  const Space scalar(H5Screate(H5S_SCALAR));
  Attribute attribute(check(H5Acreate2(group, name.c_str(), type.get(), scalar.get(), H5P_DEFAULT, H5P_DEFAULT), where,
                            "create the attribute"));
  check(H5Awrite(attribute.get(), type.get(), value), where, "write the attribute");
  check(attribute.close(), where, "write the attribute");
}

Attribute open_attribute(hid group, std::string_view name, const std::string& where) {
  Attribute attribute(check(H5Aopen(group, std::string(name).c_str(), H5P_DEFAULT), where, "open the attribute"));
  const Space space(check(H5Aget_space(attribute.get()), where, "read the attribute"));
  if (H5Sget_simple_extent_npoints(space.get()) != 1) {
    throw core::StorageError(fmt::format("{}: the attribute is not a single value.", where));
  }
  return attribute;
}

}  // namespace

namespace detail {
int close_file(hid id) {
  const Library library;
  return H5Fclose(id);
}
int close_group(hid id) {
  const Library library;
  return H5Gclose(id);
}
int close_dataset(hid id) {
  const Library library;
  return H5Dclose(id);
}
}  // namespace detail

std::vector<std::int64_t> Dataset::shape() const {
  const Library library;
  const Space space(check(H5Dget_space(handle_.get()), where_, "read its shape"));
  return shape_of(space.get(), where_);
}

comm::DType Dataset::dtype() const {
  const Library library;
  const Type type(check(H5Dget_type(handle_.get()), where_, "read its element type"));
  for (const comm::DType candidate : {comm::DType::u8, comm::DType::i32, comm::DType::i64, comm::DType::f16,
                                      comm::DType::bf16, comm::DType::f32, comm::DType::f64}) {
    if (H5Tequal(type.get(), type_of(candidate).get()) > 0) return candidate;
  }
  throw core::StorageError(fmt::format("{}: the elements are of a type that is not read here.", where_));
}

void Dataset::read(comm::Buffer out, std::int64_t first_row) const {
  const Library library;
  if (const comm::DType stored = dtype(); stored != out.dtype) {
    throw core::StorageError(
        fmt::format("{}: the elements are {}, not {}.", where_, comm::name_of(stored), comm::name_of(out.dtype)));
  }
  const Selection rows = select_rows(handle_.get(), out, first_row, where_);
  if (out.count == 0) return;
  check(H5Dread(handle_.get(), type_of(out.dtype).get(), rows.memory.get(), rows.file.get(), H5P_DEFAULT, out.data),
        where_, "read the dataset");
}

void Dataset::write(comm::Buffer rows, std::int64_t first_row) {
  const Library library;
  if (dtype() != rows.dtype) throw std::logic_error(where_ + ": written with another element type than created with");
  const Selection selection = select_rows(handle_.get(), rows, first_row, where_);
  if (rows.count == 0) return;
  check(H5Dwrite(handle_.get(), type_of(rows.dtype).get(), selection.memory.get(), selection.file.get(), H5P_DEFAULT,
                 rows.data),
        where_, "write the dataset");
  check_written(write_error_, where_);
}

std::int64_t Dataset::file_offset() const {
  const Library library;
  const haddr_t offset = H5Dget_offset(handle_.get());
  if (offset == HADDR_UNDEF) {
    throw core::StorageError(fmt::format("{}: the data do not lie in one piece in the file.", where_));
  }
  return static_cast<std::int64_t>(offset);
}

void Dataset::close() {
  const Library library;
  check(handle_.close(), where_, "close the dataset");
  check_written(write_error_, where_);
}

bool Group::has(std::string_view name) const {
  const Library library;
  std::size_t end = 0;
  do {  // HDF5 asks only for the last link of a path: the groups before it must be known to exist
    end = name.find('/', end + 1);
    if (H5Lexists(handle_.get(), std::string(name.substr(0, end)).c_str(), H5P_DEFAULT) <= 0) return false;
  } while (end != std::string_view::npos);
  return true;
}

std::vector<std::string> Group::names() const {
  const Library library;
  std::vector<std::string> names;
  check(H5Literate(
            handle_.get(), H5_INDEX_NAME, H5_ITER_INC, nullptr,
            [](hid_t, const char* name, const H5L_info_t*, void* out) -> herr_t {
              static_cast<std::vector<std::string>*>(out)->emplace_back(name);
              return 0;
            },
            &names),
        where_, "list the group");
  return names;
}

Group Group::group(std::string_view name) const {
  const Library library;
  Group group;
  group.where_ = join(where_, name);
  group.write_error_ = write_error_;
  group.handle_ = Handle<detail::close_group>(
      check(H5Gopen2(handle_.get(), std::string(name).c_str(), H5P_DEFAULT), group.where_, "open the group"));
  return group;
}

Group Group::create_group(std::string_view name) {
  const Library library;
  Group group;
  group.where_ = join(where_, name);
  group.write_error_ = write_error_;
  group.handle_ = Handle<detail::close_group>(
      check(H5Gcreate2(handle_.get(), std::string(name).c_str(), link_properties().get(), H5P_DEFAULT, H5P_DEFAULT),
            group.where_, "create the group"));
  return group;
}

Dataset Group::dataset(std::string_view name) const {
  const Library library;
  Dataset dataset;
  dataset.where_ = join(where_, name);
  dataset.write_error_ = write_error_;
  dataset.handle_ = Handle<detail::close_dataset>(
      check(H5Dopen2(handle_.get(), std::string(name).c_str(), H5P_DEFAULT), dataset.where_, "open the dataset"));
  return dataset;
}

Dataset Group::create(std::string_view name, hid type, hid space, hid properties) {
  Dataset dataset;
  dataset.where_ = join(where_, name);
  dataset.write_error_ = write_error_;
  dataset.handle_ =
      Handle<detail::close_dataset>(check(H5Dcreate2(handle_.get(), std::string(name).c_str(), type, space,
                                                     link_properties().get(), properties, H5P_DEFAULT),
                                          dataset.where_, "create the dataset"));
  return dataset;
}

Dataset Group::create_dataset(std::string_view name, comm::DType dtype, std::span<const std::int64_t> shape) {
  const Library library;
  return create(name, type_of(dtype).get(), make_space(shape, join(where_, name)).get(), H5P_DEFAULT);
}

void Group::create_virtual_dataset(std::string_view name, comm::DType dtype, std::span<const std::int64_t> shape,
                                   std::span<const VirtualSlice> slices) {
  const Library library;
  const std::string where = join(where_, name);
  create(name, type_of(dtype).get(), make_space(shape, where).get(), virtual_layout(slices, shape, where).get())
      .close();
}

void Group::create_virtual_strings(std::string_view name, std::size_t length, std::span<const VirtualSlice> slices) {
  const Library library;
  const std::string where = join(where_, name);
  std::int64_t rows = 0;
  for (const VirtualSlice& slice : slices) rows += slice.rows;
  create(name, string_type(length).get(), make_space({&rows, 1}, where).get(),
         virtual_layout(slices, {&rows, 1}, where).get())
      .close();
}

std::vector<std::string> Group::strings(std::string_view name) const {
  const Library library;
  const Dataset source = dataset(name);
  const Type type(check(H5Dget_type(source.handle_.get()), source.where_, "read its element type"));
  const std::vector<std::int64_t> shape = source.shape();
  if (H5Tget_class(type.get()) != H5T_STRING || H5Tis_variable_str(type.get()) > 0 || shape.size() != 1) {
    throw core::StorageError(fmt::format("{}: the dataset is not a list of strings of fixed length.", source.where_));
  }
  const auto rows = static_cast<std::size_t>(shape[0]), length = H5Tget_size(type.get());
  std::string padded(rows * length, '\0');
  if (rows > 0) {
    check(H5Dread(source.handle_.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, padded.data()), source.where_,
          "read the strings");
  }
  std::vector<std::string> values(rows);
  for (std::size_t i = 0; i < rows; ++i) values[i] = unpadded(std::string_view(padded).substr(i * length, length));
  return values;
}

void Group::write_strings(std::string_view name, std::span<const std::string> values) {
  const Library library;
  const std::string where = join(where_, name);
  std::size_t length = 1;
  for (const std::string& value : values) length = std::max(length, value.size());
  std::string padded(values.size() * length, '\0');
  for (std::size_t i = 0; i < values.size(); ++i) values[i].copy(&padded[i * length], length);
  const Type type = string_type(length);
  const std::int64_t rows = std::ssize(values);
  Dataset dataset = create(name, type.get(), make_space({&rows, 1}, where).get(), H5P_DEFAULT);
  if (rows > 0) {
    check(H5Dwrite(dataset.handle_.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT, padded.data()), where,
          "write the strings");
  }
  dataset.close();
}

bool Group::has_attribute(std::string_view name) const {
  const Library library;
  return check(H5Aexists(handle_.get(), std::string(name).c_str()), where_, "list the attributes") > 0;
}

std::string Group::text_attribute(std::string_view name) const {
  const Library library;
  const std::string where = fmt::format("{}@{}", where_, name);
  return read_text(open_attribute(handle_.get(), name, where).get(), where);
}

std::int64_t Group::integer_attribute(std::string_view name) const {
  const Library library;
  const std::string where = fmt::format("{}@{}", where_, name);
  const Attribute attribute = open_attribute(handle_.get(), name, where);
  std::int64_t value = 0;
  check(H5Aread(attribute.get(), H5T_NATIVE_INT64, &value), where, "read the attribute");
  return value;
}

void Group::set_attribute(std::string_view name, std::string_view text) {
  const Library library;
  const std::string padded(text.empty() ? std::string(1, '\0') : std::string(text));
  write_attribute(handle_.get(), std::string(name), string_type(text.size()), padded.data(),
                  fmt::format("{}@{}", where_, name));
}

void Group::set_attribute(std::string_view name, std::int64_t value) {
  const Library library;
  write_attribute(handle_.get(), std::string(name), Type(H5Tcopy(H5T_STD_I64LE)), &value,
                  fmt::format("{}@{}", where_, name));
}

File::File(const std::filesystem::path& path, Access access)
    : path_(path.string()), write_error_(std::make_shared<int>(0)) {
  const Library library;
  const Properties properties(H5Pcreate(H5P_FILE_ACCESS));
  const std::shared_ptr<int>* error = &write_error_;
  check(H5Pset_driver(properties.get(), Driver::id(), &error), path_, "set up HDF5");
  // This version of the format checksums its own structures.
  check(H5Pset_libver_bounds(properties.get(), H5F_LIBVER_V110, H5F_LIBVER_V110), path_, "set up HDF5");
  const bool create = access == Access::create;
  handle_ =
      Handle<detail::close_file>(check(create ? H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, properties.get())
                                              : H5Fopen(path_.c_str(), H5F_ACC_RDONLY, properties.get()),
                                       path_, create ? "create the HDF5 file" : "open the HDF5 file"));
}

Group File::root() const {
  const Library library;
  Group group;
  group.where_ = path_ + ":/";
  group.write_error_ = write_error_;
  group.handle_ =
      Handle<detail::close_group>(check(H5Gopen2(handle_.get(), "/", H5P_DEFAULT), path_, "open the root of the file"));
  return group;
}

void File::close() {
  const Library library;
  if (H5Fget_obj_count(handle_.get(), H5F_OBJ_DATASET | H5F_OBJ_GROUP | H5F_OBJ_LOCAL) > 0) {
    throw std::logic_error(path_ + ": a dataset or group is still open while its file is closed");
  }
  check(H5Fflush(handle_.get(), H5F_SCOPE_GLOBAL), path_, "write the file");
  check(handle_.close(), path_, "close the file");
  check_written(write_error_, path_);
}

std::int64_t open_objects() {
  const Library library;
  return H5Fget_obj_count(hid{H5F_OBJ_ALL}, H5F_OBJ_ALL);
}

}  // namespace allosaur::io::hdf5
