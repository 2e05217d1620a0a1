#include "io/pickle.hpp"

#include <array>
#include <bit>
#include <cstring>
#include <iterator>
#include <memory>
#include <set>
#include <unordered_map>
#include <variant>

#include <fmt/format.h>

#include "core/error.hpp"

// The stack machine of Python's pickle (pickletools.py describes it), with the instructions that torch.save's protocol
// 2, and protocol 4 where it is asked for, make of dictionaries, lists, tuples, numbers, texts and tensors.
namespace allosaur::io {
namespace {

static_assert(std::endian::native == std::endian::little);
constexpr int kMaxDepth = 8;             // of dictionaries in dictionaries
constexpr std::size_t kMaxName = 1'000;  // characters
constexpr std::size_t kShownName = 100;  // characters of a name in a message

using Named = std::vector<std::pair<std::string, PickledTensor>>;

struct StorageType {
  std::string_view name;
  at::ScalarType type;
};
constexpr std::array<StorageType, 10> kStorages{{{"torch.DoubleStorage", at::kDouble},
                                                 {"torch.FloatStorage", at::kFloat},
                                                 {"torch.HalfStorage", at::kHalf},
                                                 {"torch.BFloat16Storage", at::kBFloat16},
                                                 {"torch.LongStorage", at::kLong},
                                                 {"torch.IntStorage", at::kInt},
                                                 {"torch.ShortStorage", at::kShort},
                                                 {"torch.CharStorage", at::kChar},
                                                 {"torch.ByteStorage", at::kByte},
                                                 {"torch.BoolStorage", at::kBool}}};

enum class Callable : std::uint8_t { ordered_dict, rebuild_tensor, rebuild_parameter };

// What lies on the stack. Containers are named by their number, so that those that hold themselves, or each other to
// any depth, are nothing special.
struct Ignored {};  // None, booleans, fractions
struct Mark {};
struct Container {
  std::size_t number;
};
struct Storage {
  std::shared_ptr<const std::string> name;
  at::ScalarType type;
  std::int64_t count;
};
using Text = std::shared_ptr<const std::string>;
using Tensor = std::shared_ptr<const PickledTensor>;
using Value = std::variant<Ignored, Mark, std::int64_t, Text, Callable, at::ScalarType, Storage, Tensor, Container>;

enum class Kind : std::uint8_t { tuple, list, dictionary };
struct Items {
  Kind kind;
  std::vector<Value> values;  // of a dictionary: key, value, key, value, ...
};

class Machine {
 public:
  Machine(std::string_view pickle, const std::filesystem::path& file) : pickle_(pickle), file_(file) {}

  Named tensors() {
    while (step(static_cast<unsigned char>(bytes(1).front()))) continue;
    if (stack_.size() != 1 || position_ != pickle_.size()) damaged("it does not end where it should");
    const Items* root = items(stack_.front());
    if (root == nullptr || root->kind != Kind::dictionary)
      fail("holds no dictionary of tensors: save the network's state_dict()");
    Named found;
    collect(stack_.front(), "", 0, found);
    return found;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw core::StorageError(fmt::format("{} {}.", file_.string(), what));
  }
  [[noreturn]] void damaged(const std::string& what) const {
    fail(fmt::format("is damaged, or not written by torch.save: {} (at byte {} of its pickle)", what, position_));
  }

  std::string_view bytes(std::size_t count) {
    if (count > pickle_.size() - position_) damaged("it is cut off");
    position_ += count;
    return pickle_.substr(position_ - count, count);
  }
  template <class T>
  T number() {
    T value;
    std::memcpy(&value, bytes(sizeof value).data(), sizeof value);
    return value;
  }
  std::string_view line() {
    const std::size_t end = pickle_.find('\n', position_);
    if (end == std::string_view::npos) damaged("it is cut off");
    const std::string_view text = bytes(end - position_);
    bytes(1);
    return text;
  }

  void push(Value value) { stack_.push_back(std::move(value)); }
  void push_text(std::string_view text) { push(std::make_shared<const std::string>(text)); }
  void push_container(Kind kind, std::vector<Value> values) {
    containers_.push_back({kind, std::move(values)});
    push(Container{containers_.size() - 1});
  }
  Value& top() {
    if (stack_.empty() || std::holds_alternative<Mark>(stack_.back())) damaged("a value is missing");
    return stack_.back();
  }
  Value pop() {
    Value value = std::move(top());
    stack_.pop_back();
    return value;
  }
  std::vector<Value> pop_some(std::size_t count) {
    std::vector<Value> values(count);
    for (std::size_t i = count; i-- > 0;) values[i] = pop();
    return values;
  }
  std::vector<Value> pop_to_mark() {
    std::size_t first = stack_.size();
    while (first > 0 && !std::holds_alternative<Mark>(stack_[first - 1])) --first;
    if (first == 0) damaged("a mark is missing");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(first);
    std::vector<Value> values(std::make_move_iterator(begin), std::make_move_iterator(stack_.end()));
    stack_.erase(begin - 1, stack_.end());
    return values;
  }
  Items* items(const Value& value) {
    const Container* container = std::get_if<Container>(&value);
    return container != nullptr ? &containers_[container->number] : nullptr;
  }
  void extend(Kind kind, std::vector<Value> values) {
    Items* target = items(top());
    if (target == nullptr || target->kind != kind || (kind == Kind::dictionary && values.size() % 2 != 0))
      damaged("values are put where they cannot be");
    target->values.insert(target->values.end(), std::make_move_iterator(values.begin()),
                          std::make_move_iterator(values.end()));
  }
  void remember(std::size_t key) { memory_[key] = top(); }
  void recall(std::size_t key) {
    const auto found = memory_.find(key);
    if (found == memory_.end()) damaged("it refers to a value that was not there before");
    push(found->second);
  }

  /// The values of a tuple of at least `count`, else nullptr.
  const std::vector<Value>* tuple(const Value& value, std::size_t count) {
    const Items* found = items(value);
    return found != nullptr && found->kind == Kind::tuple && found->values.size() >= count ? &found->values : nullptr;
  }
  std::vector<std::int64_t> integers(const Value& value) {
    const std::vector<Value>* values = tuple(value, 0);
    if (values == nullptr) damaged("a tensor has no shape");
    std::vector<std::int64_t> numbers;
    for (const Value& v : *values) {
      if (!std::holds_alternative<std::int64_t>(v)) damaged("a tensor has no shape");
      numbers.push_back(std::get<std::int64_t>(v));
    }
    return numbers;
  }

  void push_global(std::string_view module, std::string_view name) {
    const std::string full = fmt::format("{}.{}", module, name);
    for (const StorageType& storage : kStorages)
      if (full == storage.name) return push(storage.type);
    if (full == "collections.OrderedDict") return push(Callable::ordered_dict);
    if (full == "torch._utils._rebuild_tensor_v2") return push(Callable::rebuild_tensor);
    if (full == "torch._utils._rebuild_parameter") return push(Callable::rebuild_parameter);
    fail(fmt::format(
        "holds more than weights: it refers to the Python name \"{}\", which is not known here, and nothing "
        "of it is run. Save the weights alone: torch.save(network.state_dict(), file)",
        full.substr(0, kShownName)));
  }

  /// ("storage", its type, the record's name, the device, the number of elements)
  void push_storage() {
    const Value id = pop();
    const std::vector<Value>* parts = tuple(id, 5);
    if (parts == nullptr || !std::holds_alternative<Text>((*parts)[0]) || *std::get<Text>((*parts)[0]) != "storage" ||
        !std::holds_alternative<at::ScalarType>((*parts)[1]) || !std::holds_alternative<Text>((*parts)[2]) ||
        !std::holds_alternative<std::int64_t>((*parts)[4]))
      damaged("it refers to something that is no storage");
    push(Storage{std::get<Text>((*parts)[2]), std::get<at::ScalarType>((*parts)[1]),
                 std::get<std::int64_t>((*parts)[4])});
  }

  void call() {
    const Value arguments = pop(), function = pop();
    const Callable* callable = std::get_if<Callable>(&function);
    if (callable == nullptr) damaged("it calls what cannot be called");
    switch (*callable) {
      case Callable::ordered_dict:
        if (const auto* values = tuple(arguments, 0); values == nullptr || !values->empty())
          damaged("a dictionary is made of something else");
        return push_container(Kind::dictionary, {});
      case Callable::rebuild_tensor: {  // (storage, offset, size, stride, requires_grad, hooks, ...)
        const std::vector<Value>* values = tuple(arguments, 4);
        if (values == nullptr || !std::holds_alternative<Storage>((*values)[0]) ||
            !std::holds_alternative<std::int64_t>((*values)[1]))
          damaged("a tensor is made of something else");
        const Storage& storage = std::get<Storage>((*values)[0]);
        return push(std::make_shared<const PickledTensor>(
            PickledTensor{*storage.name, storage.type, storage.count, std::get<std::int64_t>((*values)[1]),
                          integers((*values)[2]), integers((*values)[3])}));
      }
      case Callable::rebuild_parameter: {  // (tensor, requires_grad, hooks)
        const std::vector<Value>* values = tuple(arguments, 1);
        if (values == nullptr || !std::holds_alternative<Tensor>(values->front()))
          damaged("a parameter is made of something else");
        return push(Value(values->front()));
      }
    }
  }

  /// Whether there is a next instruction.
  bool step(unsigned char instruction) {
    switch (instruction) {
      case 0x80: {  // PROTO
        const int protocol = number<std::uint8_t>();
        if (protocol < 2 || protocol > 5)
          fail(fmt::format("has the pickle protocol {}, which is not read here", protocol));
        break;
      }
      case 0x95:
        bytes(8);
        break;  // FRAME
      case '(':
        push(Mark{});
        break;
      case 'N':
      case 0x88:
      case 0x89:
        push(Ignored{});
        break;  // NONE, NEWTRUE, NEWFALSE
      case 'G':
        bytes(8), push(Ignored{});
        break;  // BINFLOAT
      case 'J':
        push(std::int64_t{number<std::int32_t>()});
        break;
      case 'K':
        push(std::int64_t{number<std::uint8_t>()});
        break;
      case 'M':
        push(std::int64_t{number<std::uint16_t>()});
        break;
      case 0x8A: {  // LONG1: little-endian two's complement
        const std::string_view digits = bytes(number<std::uint8_t>());
        std::uint64_t value = !digits.empty() && (digits.back() & 0x80) != 0 ? ~std::uint64_t{0} : 0;
        if (digits.size() > sizeof value) return push(Ignored{}), true;
        std::memcpy(&value, digits.data(), digits.size());
        push(static_cast<std::int64_t>(value));
        break;
      }
      case 'X':
        push_text(bytes(number<std::uint32_t>()));
        break;  // BINUNICODE
      case 0x8C:
        push_text(bytes(number<std::uint8_t>()));
        break;  // SHORT_BINUNICODE
      case ')':
        push_container(Kind::tuple, {});
        break;
      case 0x85:
      case 0x86:
      case 0x87:
        push_container(Kind::tuple, pop_some(instruction - 0x84U));
        break;
      case 't':
        push_container(Kind::tuple, pop_to_mark());
        break;
      case ']':
        push_container(Kind::list, {});
        break;
      case 'a':
        extend(Kind::list, pop_some(1));
        break;
      case 'e':
        extend(Kind::list, pop_to_mark());
        break;
      case '}':
        push_container(Kind::dictionary, {});
        break;
      case 's':
        extend(Kind::dictionary, pop_some(2));
        break;
      case 'u':
        extend(Kind::dictionary, pop_to_mark());
        break;
      case 'q':
        remember(number<std::uint8_t>());
        break;
      case 'r':
        remember(number<std::uint32_t>());
        break;
      case 0x94:
        remember(memory_.size());
        break;  // MEMOIZE
      case 'h':
        recall(number<std::uint8_t>());
        break;
      case 'j':
        recall(number<std::uint32_t>());
        break;
      case 'c': {  // GLOBAL
        const std::string_view module = line(), name = line();
        push_global(module, name);
        break;
      }
      case 0x93: {  // STACK_GLOBAL
        const Value name = pop(), module = pop();
        if (!std::holds_alternative<Text>(name) || !std::holds_alternative<Text>(module)) damaged("a name is no text");
        push_global(*std::get<Text>(module), *std::get<Text>(name));
        break;
      }
      case 'Q':
        push_storage();
        break;  // BINPERSID
      case 'R':
        call();
        break;     // REDUCE
      case 'b': {  // BUILD: the versions of modules that a state_dict carries
        pop();
        if (const Items* target = items(top()); target == nullptr || target->kind != Kind::dictionary)
          damaged("something else than a dictionary has attributes");
        break;
      }
      case '.':
        return false;
      default:
        damaged(fmt::format("the instruction {:#04x} is not known", instruction));
    }
    return true;
  }

  /// The tensors of a dictionary, each dictionary once.
  void collect(const Value& from, const std::string& prefix, int depth, Named& found) {
    const std::size_t number = std::get<Container>(from).number;
    if (!collected_.insert(number).second) return;
    if (depth > kMaxDepth) fail("holds dictionaries nested too deeply");
    const std::vector<Value>& values = containers_[number].values;
    for (std::size_t i = 0; i < values.size(); i += 2) {
      const Items* inner = items(values[i + 1]);
      const bool dictionary = inner != nullptr && inner->kind == Kind::dictionary;
      const Tensor* tensor = std::get_if<Tensor>(&values[i + 1]);
      if (!dictionary && tensor == nullptr) continue;
      std::string name = prefix;
      if (const Text* text = std::get_if<Text>(&values[i])) {
        if (text->get()->size() > kMaxName) fail(fmt::format("has names of more than {} characters", kMaxName));
        name += **text;
      } else if (const std::int64_t* index = std::get_if<std::int64_t>(&values[i])) {
        name += std::to_string(*index);
      } else {
        continue;
      }
      if (dictionary) {
        collect(values[i + 1], name + ".", depth + 1, found);
      } else {
        if (!names_.insert(name).second)
          fail(fmt::format("holds two tensors of the name \"{}\"", name.substr(0, kShownName)));
        found.emplace_back(std::move(name), **tensor);
      }
    }
  }

  std::string_view pickle_;
  const std::filesystem::path& file_;
  std::size_t position_ = 0;
  std::vector<Value> stack_;
  std::vector<Items> containers_;
  std::unordered_map<std::size_t, Value> memory_;
  std::set<std::size_t> collected_;  // dictionaries
  std::set<std::string> names_;
};

}  // namespace

Named pickled_tensors(std::string_view pickle, const std::filesystem::path& file) {
  return Machine(pickle, file).tensors();
}

}  // namespace allosaur::io
