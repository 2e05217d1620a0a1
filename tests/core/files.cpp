#include "core/files.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "core/error.hpp"
#include "testing.hpp"

using namespace allosaur;

TEST_CASE("files: an atomic write replaces the whole file and leaves nothing else") {
  testing::TemporaryDirectory directory;
  const auto file = directory.path() / "state.json";
  core::write_atomically(file, "a longer first version");
  core::write_atomically(file, "second");
  CHECK(core::read_text(file) == "second");
  CHECK(std::distance(std::filesystem::directory_iterator(directory.path()), {}) == 1);
  std::ofstream(directory.path() / "part.tmp") << "part";
  core::publish_file(directory.path() / "part.tmp", directory.path() / "part");
  CHECK(core::read_text(directory.path() / "part") == "part");
}

TEST_CASE("files: errors name the file and the reason") {
  testing::TemporaryDirectory directory;
  CHECK_THROWS_WITH_AS(core::read_text(directory.path() / "none"), doctest::Contains("none: No such file"),
                       core::InputError);
  CHECK_THROWS_WITH_AS(core::read_text(directory.path()), doctest::Contains("is a folder"), core::InputError);
  CHECK_THROWS_WITH_AS(core::write_atomically(directory.path() / "no" / "file", "x"), doctest::Contains("No such file"),
                       core::StorageError);
  CHECK_THROWS_AS(core::write_atomically("/dev/full/x", "x"), core::StorageError);
  std::ofstream(directory.path() / "plain") << "x";
  CHECK_THROWS_AS(core::make_directory(directory.path() / "plain" / "below"), core::StorageError);
  CHECK_THROWS_WITH_AS(core::read_text(directory.path() / "plain" / "below"), doctest::Contains("Not a directory"),
                       core::InputError);
}

TEST_CASE("files: folders are made with their parents, wherever they begin") {
  testing::TemporaryDirectory directory;
  core::make_directory(directory.path() / "a" / "b" / "");
  core::make_directory(directory.path() / "a" / "b" / "c");
  CHECK(std::filesystem::is_directory(directory.path() / "a" / "b" / "c"));
  CHECK(core::folder_of("plain") == ".");
  CHECK(core::folder_of("a/plain") == "a");
}

TEST_CASE("files: XXH3-64 as published") {
  CHECK(core::hash_hex(core::hash_bytes({})) == "2d06800538d394c2");
  const std::string text = "allosaur";
  const auto bytes = std::as_bytes(std::span(text));
  CHECK(core::hash_bytes(bytes) == core::hash_bytes(bytes));
  CHECK(core::hash_bytes(bytes, 1) != core::hash_bytes(bytes));
}

TEST_CASE("files: a locked folder is refused to another process until the holder is gone") {
  testing::TemporaryDirectory directory;
  // The child reports by its exit status: 0 it got the lock, 2 it was refused with the holder's process in the message.
  const auto try_in_child = [&] {
    const std::string holder = "process " + std::to_string(::getpid());
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        const core::DirectoryLock lock(directory.path());
        ::_exit(0);
      } catch (const core::UsageError& error) {
        ::_exit(std::string(error.what()).find(holder) != std::string::npos ? 2 : 1);
      } catch (...) {
        ::_exit(1);
      }
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return WEXITSTATUS(status);
  };
  {
    core::DirectoryLock lock(directory.path());
    const core::DirectoryLock moved(std::move(lock));
    CHECK(try_in_child() == 2);
  }
  CHECK(try_in_child() == 0);
}
