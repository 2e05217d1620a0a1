#include "core/event_file.hpp"

#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <string>
#include <system_error>

#include <fmt/format.h>
#include <boost/crc.hpp>

#include "core/error.hpp"
#include "core/files.hpp"

namespace allosaur::core {

namespace {

[[noreturn]] void fail(const std::filesystem::path& file, int error) {
  throw StorageError(fmt::format("Cannot write {}: {}.", file.string(), std::generic_category().message(error)));
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// The last `bytes` bytes of `bits`, lowest first.
void put_fixed(std::string& out, std::uint64_t bits, int bytes) {
  for (int i = 0; i < bytes; ++i) out += static_cast<char>(bits >> (8 * i) & 0xff);
}

void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7f) | 0x80);
  out += static_cast<char>(value);
}

// Fields of a protocol buffer: their number and wire type, then the value.
void put_integer(std::string& out, unsigned field, std::uint64_t value) {
  put_varint(out, field << 3);
  put_varint(out, value);
}
void put_double(std::string& out, unsigned field, double value) {
  put_varint(out, field << 3 | 1);
  put_fixed(out, std::bit_cast<std::uint64_t>(value), 8);
}
void put_float(std::string& out, unsigned field, float value) {
  put_varint(out, field << 3 | 5);
  put_fixed(out, std::bit_cast<std::uint32_t>(value), 4);
}
void put_bytes(std::string& out, unsigned field, std::string_view value) {
  put_varint(out, field << 3 | 2);
  put_varint(out, value.size());
  out += value;
}

/// CRC-32C, masked as TFRecord files have it: a checksum of data that hold checksums themselves would be weak.
std::uint32_t masked_crc(std::string_view bytes) {
  boost::crc_optimal<32, 0x1EDC6F41, 0xFFFFFFFF, 0xFFFFFFFF, true, true> crc;
  crc.process_bytes(bytes.data(), bytes.size());
  const auto value = static_cast<std::uint32_t>(crc.checksum());
  return std::rotr(value, 15) + 0xa282ead8U;
}

/// event.proto: Event{1 wall_time, 2 step, 3 file_version, 5 summary, 7 session_log}.
std::string new_event(std::int64_t step) {
  std::string event;
  put_double(event, 1, now());
  put_integer(event, 2, static_cast<std::uint64_t>(step));
  return event;
}

}  // namespace

EventFile::EventFile(const std::filesystem::path& directory, std::int64_t first_step) {
  const std::string stem =
      fmt::format("events.out.tfevents.{}.{}.{}", static_cast<std::int64_t>(now()), host_name(), ::getpid());
  for (int n = 0; !stream_; ++n) {
    path_ = directory / fmt::format("{}.{}", stem, n);
    stream_.reset(std::fopen(path_.c_str(), "wxe"));
    if (!stream_ && errno != EEXIST) fail(path_, errno);
  }
  std::string version = new_event(0);
  put_bytes(version, 3, "brain.Event:2");
  append(version);
  std::string start;  // SessionLog{1 status = START}: later steps of earlier files are void
  put_integer(start, 1, 1);
  std::string session = new_event(first_step);
  put_bytes(session, 7, start);
  append(session);
}

void EventFile::write(std::int64_t step, std::span<const std::pair<std::string_view, double>> scalars) {
  std::string summary;  // Summary{1 value{1 tag, 2 simple_value}}
  for (const auto& [tag, scalar] : scalars) {
    std::string value;
    put_bytes(value, 1, tag);
    put_float(value, 2, static_cast<float>(scalar));
    put_bytes(summary, 1, value);
  }
  std::string event = new_event(step);
  put_bytes(event, 5, summary);
  append(event);
}

void EventFile::append(std::string_view event) {
  std::string record;
  put_fixed(record, event.size(), 8);
  put_fixed(record, masked_crc(record), 4);
  record += event;
  put_fixed(record, masked_crc(event), 4);
  if (std::fwrite(record.data(), 1, record.size(), stream_.get()) != record.size() || std::fflush(stream_.get()) != 0)
    fail(path_, errno);
}

}  // namespace allosaur::core
