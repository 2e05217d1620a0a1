#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace allosaur::core {

/// Every type an option can have. Lists are written `0.32,1.0`; booleans `true|false` (as a flag, `--key` alone is
/// true).
using OptionValue = std::variant<bool, std::int64_t, double, std::string, std::vector<std::int64_t>,
                                 std::vector<double>, std::vector<std::string>>;

/// Whether an option may differ when a run is continued: `fixed` decides what is computed, `free` only where and how.
enum class OptionKind : std::uint8_t { fixed, free };

/// One declared option. Rules come behind the declaration: `options.add("optim.clip_grad", 3.0, "...").at_least(0)`;
/// those of numbers hold for every value of a list.
struct Declaration {
  std::string key, help, section;
  OptionValue default_value;
  OptionKind kind = OptionKind::fixed;
  bool required = false;

  struct Bound {
    double value;
    bool included;
  };
  std::optional<Bound> low, high;
  std::optional<std::size_t> count;  ///< of a list
  bool may_be_empty = true;          ///< a list
  bool small = false;                ///< numbers fit an int
  std::vector<std::string> choices;  ///< of a text; none: any

  Declaration& at_least(double value);
  Declaration& above(double value);
  Declaration& at_most(double value);
  Declaration& below(double value);
  Declaration& within(double least, double most) { return at_least(least).at_most(most); }
  Declaration& fits_int();
  Declaration& values(std::size_t number);
  Declaration& not_empty();
  Declaration& one_of(std::vector<std::string> texts);

  /// What a value has to be and is not, as the end of a sentence ("must be at least 1"); empty when it is.
  std::string broken_rule(const OptionValue& value) const;
  /// The rules in words ("at least 1"), for --help; empty where there are none, or `help` has them already.
  std::string rules() const;

 private:
  std::string range() const;
};

/// The declared options of one job: one declaration a key, with default and help; then parsed from `--config` file and
/// flags (a flag wins). Built on Boost.Program_options; a small reader of ours feeds it the configuration file.
class Options {
 public:
  /// Starts a section; the options declared after it are listed under `title` in --help.
  void section(std::string title);
  /// Declares `key` (`optim.base_lr`; on the command line `--optim.base_lr=0.004` or `--optim.base_lr 0.004`). What it
  /// returns takes the option's rules, and lasts until the next declaration.
  Declaration& add(std::string key, OptionValue default_value, std::string help, OptionKind kind = OptionKind::fixed);
  /// As add(), for a string that has no default and must be given.
  Declaration& add_required(std::string key, std::string help, OptionKind kind = OptionKind::fixed);
  /// A key of the official DINOv2 configuration that has no meaning here: given, it is refused with `why`.
  void refuse(std::string key, std::string why);

  /// Parses flags and the text of the configuration file (`config_name` is used in messages). The file has lines
  /// `key = value`, sections (`[optim]` puts `optim.` before the keys that follow), and comments from a `#` at the
  /// start of a line or after a blank; a value that needs its blanks or a comment sign stands in double quotes. Reports
  /// every unknown, misspelt (with the nearest known key), ill-typed, duplicate and missing key, and every value
  /// against a rule, in one UsageError. No guessing of abbreviations; stray positional arguments are errors. A default
  /// against its own rule is a bug and throws std::logic_error.
  void parse(const std::vector<std::string>& flags, std::string_view config_text = {},
             std::string_view config_name = {});

  /// The value of `key`; T is one of OptionValue's types (std::filesystem::path reads a string). A key that was never
  /// declared, or has another type, is a bug and throws std::logic_error.
  template <class T>
  const T& get(std::string_view key) const {
    return std::get<T>(value(key));
  }
  bool flag(std::string_view key) const { return get<bool>(key); }
  std::int64_t integer(std::string_view key) const { return get<std::int64_t>(key); }
  /// integer() of an option that was declared with fits_int(); of another it is a bug and throws std::logic_error.
  int small_integer(std::string_view key) const;
  double number(std::string_view key) const { return get<double>(key); }
  const std::string& text(std::string_view key) const { return get<std::string>(key); }
  std::filesystem::path path(std::string_view key) const { return get<std::string>(key); }

  /// Sets a value in code (a pipeline sets the keys of its phases); same type rules as get(). Before parse() it takes
  /// the place of the default, afterwards of what the user gave. Throws UsageError for a value against a rule.
  void set(std::string_view key, OptionValue value);

  std::string help() const;      ///< sections, keys, types, defaults, meanings, rules
  std::string resolved() const;  ///< every key with its value, as a configuration file that parse() reads back
  /// Lines `key: was X, now Y` for each `fixed` option that differs from `earlier`, the resolved() text of a former
  /// run.
  std::vector<std::string> differences(std::string_view earlier) const;

 private:
  struct Setting;  // a key and its text, as found in a file or among the flags
  const OptionValue& value(std::string_view key) const;
  const Declaration* find(std::string_view key) const;
  std::vector<Setting> read_flags(const std::vector<std::string>& flags, std::vector<std::string>& problems) const;
  static std::vector<Setting> read_config(std::string_view text, std::string_view name,
                                          std::vector<std::string>& problems);
  void apply(const std::vector<Setting>& settings, std::vector<std::string>& problems);
  std::string suggestion(std::string_view key) const;

  std::vector<Declaration> declarations_;
  std::map<std::string, std::string, std::less<>> refused_;
  std::map<std::string, OptionValue, std::less<>> values_;
  std::string section_;
};

}  // namespace allosaur::core
