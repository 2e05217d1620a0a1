#include "core/options.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <boost/program_options.hpp>

#include "core/error.hpp"

namespace allosaur::core {

namespace po = boost::program_options;

namespace {

constexpr std::string_view kBlank = " \t\r";

template <class T>
struct is_list : std::false_type {};
template <class T>
struct is_list<std::vector<T>> : std::true_type {};

template <class T>
std::string_view type_name() {
  if constexpr (std::is_same_v<T, bool>) return "true|false";
  if constexpr (std::is_same_v<T, std::int64_t>) return "INTEGER";
  if constexpr (std::is_same_v<T, double>) return "NUMBER";
  if constexpr (std::is_same_v<T, std::string>) return "TEXT";
  if constexpr (std::is_same_v<T, std::vector<std::int64_t>>) return "INTEGER,...";
  if constexpr (std::is_same_v<T, std::vector<double>>) return "NUMBER,...";
  if constexpr (std::is_same_v<T, std::vector<std::string>>) return "TEXT,...";
}

std::string_view type_name(const OptionValue& value) {
  return std::visit([](const auto& v) { return type_name<std::decay_t<decltype(v)>>(); }, value);
}

std::string to_text(const OptionValue& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        if constexpr (is_list<std::decay_t<decltype(v)>>::value) {
          return fmt::format("{}", fmt::join(v, ","));
        } else {
          return fmt::format("{}", v);
        }
      },
      value);
}

std::string_view trim(std::string_view text) {
  const auto first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

std::vector<std::string> split_list(std::string_view text) {
  std::vector<std::string> parts;
  if (trim(text).empty()) return parts;
  while (true) {
    const auto comma = text.find(',');
    parts.emplace_back(trim(text.substr(0, comma)));
    if (comma == std::string_view::npos) return parts;
    text.remove_prefix(comma + 1);
  }
}

/// Whether `test` holds for every number that the value has.
template <class Test>
bool all_numbers(const OptionValue& value, const Test& test) {
  return std::visit(
      [&](const auto& typed) {
        using T = std::decay_t<decltype(typed)>;
        if constexpr (std::is_same_v<T, double> || std::is_same_v<T, std::int64_t>)
          return test(static_cast<double>(typed));
        else if constexpr (std::is_same_v<T, std::vector<double>> || std::is_same_v<T, std::vector<std::int64_t>>)
          return std::ranges::all_of(typed, [&](auto number) { return test(static_cast<double>(number)); });
        else
          return true;
      },
      value);
}

std::size_t count_of(const OptionValue& value) {
  return std::visit(
      [](const auto& typed) {
        if constexpr (is_list<std::decay_t<decltype(typed)>>::value) return typed.size();
        return std::size_t{1};
      },
      value);
}

/// The value that `text` means for an option of the type of `like`; nothing when it means none.
std::optional<OptionValue> from_text(const std::string& text, const OptionValue& like) {
  const auto value = std::visit(
      [&](const auto& typed) -> std::optional<OptionValue> {
        using T = std::decay_t<decltype(typed)>;
        if constexpr (std::is_same_v<T, std::string>) {
          return text;
        } else {
          const std::unique_ptr<const po::value_semantic> type(po::value<T>());
          const auto tokens = is_list<T>::value ? split_list(text) : std::vector<std::string>{text};
          boost::any parsed;
          try {
            type->parse(parsed, tokens, true);
          } catch (const po::error&) {
            return std::nullopt;
          }
          return boost::any_cast<T>(parsed);
        }
      },
      like);
  const bool finite = value && all_numbers(*value, [](double number) { return std::isfinite(number); });
  return finite ? value : std::nullopt;
}

/// Number of single-character edits between two keys (Levenshtein).
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = std::exchange(row[j + 1], std::min({replaced, row[j] + 1, row[j + 1] + 1}));
    }
  }
  return row.back();
}

/// The line up to a `#` that starts a comment: one at the start or after a blank, outside a value in quotes.
std::string_view without_comment(std::string_view line) {
  bool quoted = false, after_blank = true;
  char solid = 0;  // the last character that is not blank
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '#' && after_blank && !quoted) return line.substr(0, i);
    if (line[i] == '"') quoted = !quoted && solid == '=';
    after_blank = kBlank.find(line[i]) != std::string_view::npos;
    if (!after_blank) solid = line[i];
  }
  return line;
}

std::string_view unquoted(std::string_view value) {
  const bool quoted = value.size() >= 2 && value.front() == '"' && value.back() == '"';
  return quoted ? value.substr(1, value.size() - 2) : value;
}

std::string quoted_if_needed(const std::string& value) {
  const std::string line = "= " + value;
  const bool plain = without_comment(line) == line && trim(value) == value && unquoted(value) == value;
  return plain ? value : '"' + value + '"';
}

}  // namespace

struct Options::Setting {
  std::string key, text, place;  // place: "run.cfg:12" or "flag"
};

Declaration& Declaration::at_least(double value) {
  low = {value, true};
  return *this;
}

Declaration& Declaration::above(double value) {
  low = {value, false};
  return *this;
}

Declaration& Declaration::at_most(double value) {
  high = {value, true};
  return *this;
}

Declaration& Declaration::below(double value) {
  high = {value, false};
  return *this;
}

Declaration& Declaration::fits_int() {
  small = true;
  return *this;
}

Declaration& Declaration::values(std::size_t number) {
  count = number;
  return *this;
}

Declaration& Declaration::not_empty() {
  may_be_empty = false;
  return *this;
}

Declaration& Declaration::one_of(std::vector<std::string> texts) {
  choices = std::move(texts);
  return *this;
}

std::string Declaration::broken_rule(const OptionValue& value) const {
  const std::size_t found = count_of(value);
  if (count && found != *count) return fmt::format("must have {} values", *count);
  if (!may_be_empty && found == 0) return "must have at least one value";
  const auto* text = std::get_if<std::string>(&value);
  if (text != nullptr && !choices.empty() && std::ranges::find(choices, *text) == choices.end())
    return fmt::format("must be one of {}", fmt::join(choices, ", "));
  const bool allowed = all_numbers(value, [&](double number) {
    return (!low || number > low->value || (low->included && number == low->value)) &&
           (!high || number < high->value || (high->included && number == high->value));
  });
  if (!allowed) return fmt::format("must be {}", range());
  const bool fits =
      all_numbers(value, [](double number) { return std::abs(number) <= std::numeric_limits<int>::max(); });
  return small && !fits ? "is too large" : "";
}

std::string Declaration::range() const {
  std::vector<std::string> bounds;
  if (low) bounds.push_back(fmt::format("{} {}", low->included ? "at least" : "above", low->value));
  if (high) bounds.push_back(fmt::format("{} {}", high->included ? "at most" : "below", high->value));
  return fmt::format("{}", fmt::join(bounds, " and "));
}

std::string Declaration::rules() const {
  std::vector<std::string> all;
  if (count) all.push_back(fmt::format("{} values", *count));
  if (!may_be_empty) all.push_back("at least one value");
  const auto is_told = [&](const std::string& choice) { return help.find(choice) != std::string::npos; };
  if (!std::ranges::all_of(choices, is_told)) all.push_back(fmt::format("one of {}", fmt::join(choices, ", ")));
  if (low || high) all.push_back(range());
  return fmt::format("{}", fmt::join(all, ", "));
}

void Options::section(std::string title) {
  section_ = std::move(title);
}

Declaration& Options::add(std::string key, OptionValue default_value, std::string help, OptionKind kind) {
  if (find(key) != nullptr) throw std::logic_error("option declared twice: " + key);
  values_[key] = default_value;
  return declarations_.emplace_back(std::move(key), std::move(help), section_, std::move(default_value), kind);
}

Declaration& Options::add_required(std::string key, std::string help, OptionKind kind) {
  Declaration& declaration = add(std::move(key), std::string(), std::move(help), kind);
  declaration.required = true;
  values_.erase(declaration.key);
  return declaration;
}

void Options::refuse(std::string key, std::string why) {
  refused_[std::move(key)] = std::move(why);
}

const Declaration* Options::find(std::string_view key) const {
  const auto found = std::ranges::find(declarations_, key, &Declaration::key);
  return found == declarations_.end() ? nullptr : &*found;
}

const OptionValue& Options::value(std::string_view key) const {
  const auto found = values_.find(key);
  if (found == values_.end()) throw std::logic_error(fmt::format("option {} was not declared or has no value", key));
  return found->second;
}

int Options::small_integer(std::string_view key) const {
  const std::int64_t value = integer(key);
  if (!find(key)->small) throw std::logic_error(fmt::format("option {} may be too large for an int", key));
  return static_cast<int>(value);
}

void Options::set(std::string_view key, OptionValue value) {
  const Declaration* declaration = find(key);
  if (declaration == nullptr || declaration->default_value.index() != value.index()) {
    throw std::logic_error(fmt::format("option {} was not declared, or not with this type", key));
  }
  if (const std::string rule = declaration->broken_rule(value); !rule.empty())
    throw UsageError(fmt::format("{} = {} {}.", key, to_text(value), rule));
  values_[std::string(key)] = std::move(value);
}

std::vector<Options::Setting> Options::read_flags(const std::vector<std::string>& flags,
                                                  std::vector<std::string>& problems) const {
  std::vector<Setting> settings;
  for (std::size_t i = 0; i < flags.size(); ++i) {
    const std::string& flag = flags[i];
    if (!flag.starts_with("--") || flag.size() == 2) {
      problems.push_back(fmt::format("unexpected argument '{}': options are written --key=value", flag));
      continue;
    }
    const auto equals = flag.find('=');
    const std::string key = flag.substr(2, equals == std::string::npos ? equals : equals - 2);
    const Declaration* declaration = find(key);
    const bool value_follows = i + 1 < flags.size() && !flags[i + 1].starts_with("--");
    if (equals != std::string::npos) {
      settings.push_back({key, flag.substr(equals + 1), "flag"});
    } else if (declaration != nullptr && std::holds_alternative<bool>(declaration->default_value)) {
      settings.push_back({key, "true", "flag"});
    } else if (value_follows) {
      settings.push_back({key, flags[++i], "flag"});
    } else if (declaration != nullptr) {
      problems.push_back(fmt::format("flag --{} lacks its value", key));
    } else {
      settings.push_back({key, {}, "flag"});
    }
  }
  return settings;
}

std::vector<Options::Setting> Options::read_config(std::string_view text, std::string_view name,
                                                   std::vector<std::string>& problems) {
  std::vector<Setting> settings;
  std::string prefix;
  std::istringstream lines{std::string(text)};
  std::string raw;
  for (int number = 1; std::getline(lines, raw); ++number) {
    const std::string place = fmt::format("{}:{}", name, number);
    const std::string_view line = trim(without_comment(raw));
    const auto equals = line.find('=');
    if (line.empty()) continue;
    if (line.front() == '[' && line.back() == ']') {
      prefix = trim(line.substr(1, line.size() - 2));
      if (!prefix.empty()) prefix += '.';
    } else if (equals == std::string_view::npos || equals == 0) {
      problems.push_back(fmt::format("{}: '{}' is neither `key = value` nor `[section]`", place, line));
    } else {
      settings.push_back({prefix + std::string(trim(line.substr(0, equals))),
                          std::string(unquoted(trim(line.substr(equals + 1)))), place});
    }
  }
  return settings;
}

std::string Options::suggestion(std::string_view key) const {
  const Declaration* nearest = nullptr;
  std::size_t least = std::max<std::size_t>(2, key.size() / 3) + 1;
  for (const Declaration& declaration : declarations_) {
    const std::string_view known = declaration.key;
    const bool same_without_section =
        known.ends_with(key) && known.size() > key.size() && known[known.size() - key.size() - 1] == '.';
    const std::size_t distance = same_without_section ? 1 : edit_distance(key, known);
    if (distance < least) {
      least = distance;
      nearest = &declaration;
    }
  }
  return nearest == nullptr ? std::string() : fmt::format("; did you mean {}?", nearest->key);
}

void Options::apply(const std::vector<Setting>& settings, std::vector<std::string>& problems) {
  std::map<std::string_view, std::string_view> seen;
  for (const Setting& setting : settings) {
    const auto& [key, text, place] = setting;
    const auto [earlier, first_time] = seen.emplace(key, place);
    if (!first_time) {
      problems.push_back(fmt::format("{}: {} is given twice (first: {})", place, key, earlier->second));
      continue;
    }
    if (const auto refused = refused_.find(key); refused != refused_.end()) {
      problems.push_back(fmt::format("{}: {} is not an option here: {}", place, key, refused->second));
      continue;
    }
    const Declaration* declaration = find(key);
    if (declaration == nullptr) {
      problems.push_back(fmt::format("{}: unknown key {}{}", place, key, suggestion(key)));
      continue;
    }
    std::optional<OptionValue> value = from_text(text, declaration->default_value);
    if (!value || text.find('\n') != std::string::npos) {
      problems.push_back(
          fmt::format("{}: {} = '{}' is not of type {}", place, key, text, type_name(declaration->default_value)));
      continue;
    }
    if (const std::string rule = declaration->broken_rule(*value); !rule.empty()) {
      problems.push_back(fmt::format("{}: {} = {} {}", place, key, text.empty() ? "''" : text, rule));
      continue;
    }
    values_[key] = std::move(*value);
  }
}

void Options::parse(const std::vector<std::string>& flags, std::string_view config_text, std::string_view config_name) {
  for (const Declaration& declaration : declarations_) {
    if (!declaration.required && !declaration.broken_rule(declaration.default_value).empty())
      throw std::logic_error("the default of an option is against its own rule: " + declaration.key);
  }
  std::vector<std::string> problems;
  apply(read_config(config_text, config_name, problems), problems);
  apply(read_flags(flags, problems), problems);
  for (const Declaration& declaration : declarations_) {
    if (!values_.contains(declaration.key)) {
      problems.push_back(fmt::format("--{} must be given ({})", declaration.key, declaration.help));
    }
  }
  if (!problems.empty()) {
    throw UsageError(fmt::format("The options are not usable; --help lists them.\n  {}", fmt::join(problems, "\n  ")));
  }
}

std::string Options::help() const {
  constexpr unsigned kWidth = 120;
  po::options_description all(kWidth, kWidth / 2);
  for (std::size_t i = 0; i < declarations_.size();) {
    const std::string& title = declarations_[i].section;
    po::options_description group(title, kWidth, kWidth / 2);
    for (; i < declarations_.size() && declarations_[i].section == title; ++i) {
      const Declaration& option = declarations_[i];
      const std::string value = to_text(option.default_value);
      auto* semantic = po::value<std::string>()->value_name(std::string(type_name(option.default_value)));
      if (!option.required && !value.empty()) semantic->default_value(value);
      std::string meaning = option.help;
      if (const std::string rules = option.rules(); !rules.empty()) meaning += fmt::format(" ({})", rules);
      if (option.required) meaning += " (required)";
      group.add_options()(option.key.c_str(), semantic, meaning.c_str());
    }
    all.add(group);
  }
  std::ostringstream text;
  text << all;
  return text.str();
}

std::string Options::resolved() const {
  std::string text;
  std::string_view title;
  for (const Declaration& option : declarations_) {
    if (option.section != title) {
      title = option.section;
      text += fmt::format("{}# {}\n", text.empty() ? "" : "\n", title);
    }
    if (const auto found = values_.find(option.key); found != values_.end()) {
      text += fmt::format("{} = {}\n", option.key, quoted_if_needed(to_text(found->second)));
    }
  }
  return text;
}

std::vector<std::string> Options::differences(std::string_view earlier) const {
  std::vector<std::string> problems;
  std::map<std::string, std::string> was;
  for (Setting& setting : read_config(earlier, "earlier", problems)) was[setting.key] = std::move(setting.text);
  std::vector<std::string> lines;
  for (const Declaration& option : declarations_) {
    if (option.kind == OptionKind::free || !values_.contains(option.key)) continue;
    const auto found = was.find(option.key);
    const std::string before = found == was.end() ? to_text(option.default_value) : found->second;
    const std::string now = to_text(value(option.key));
    if (from_text(before, option.default_value) != value(option.key)) {
      lines.push_back(fmt::format("{}: was {}, now {}", option.key, before, now));
    }
  }
  return lines;
}

}  // namespace allosaur::core
