#include "core/random.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include "testing.hpp"

using allosaur::core::Permutation;
using allosaur::core::philox;
using allosaur::core::Purpose;
using allosaur::core::Random;
using allosaur::core::random_subset;

TEST_CASE("random: Philox4x32-10 gives the published known answers") {
  using Block = std::array<std::uint32_t, 4>;
  CHECK(philox({0, 0, 0, 0}, {0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CHECK(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}) == Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
        Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("random: the key decides the numbers, and each part of it matters") {
  const auto first = [](Random random) { return random.bits64(); };
  const std::uint64_t reference = first(Random(1, Purpose::mask, 2, 3));
  CHECK(first(Random(1, Purpose::mask, 2, 3)) == reference);
  const std::set<std::uint64_t> others{
      first(Random(2, Purpose::mask, 2, 3)),          first(Random(1, Purpose::demo, 2, 3)),
      first(Random(1, Purpose::mask, 3, 3)),          first(Random(1, Purpose::mask, 2, 4)),
      first(Random(1ull << 40, Purpose::mask, 2, 3)), first(Random(1, Purpose::mask, 1ull << 40, 3))};
  CHECK(others.size() == 6);
  CHECK(!others.contains(reference));
}

TEST_CASE("random: uniform numbers, integers and normals have their moments") {
  Random random(7, Purpose::demo, 0);
  constexpr int kDraws = 200000;
  double sum = 0, squares = 0, normals = 0, normal_squares = 0;
  std::array<int, 6> faces{};
  for (int i = 0; i < kDraws; ++i) {
    const double u = random.uniform(), z = random.normal();
    sum += u;
    squares += u * u;
    normals += z;
    normal_squares += z * z;
    ++faces.at(static_cast<std::size_t>(random.below(6)));
  }
  CHECK(sum / kDraws == doctest::Approx(0.5).epsilon(0.01));
  CHECK(squares / kDraws == doctest::Approx(1.0 / 3).epsilon(0.01));
  CHECK(std::abs(normals / kDraws) < 0.01);
  CHECK(normal_squares / kDraws == doctest::Approx(1.0).epsilon(0.015));
  for (const int count : faces) CHECK(count == doctest::Approx(kDraws / 6.0).epsilon(0.03));
  CHECK(random.below(1) == 0);
}

TEST_CASE("random: a subset has distinct members, all alike probable") {
  std::vector<int> drawn(10);
  for (std::uint64_t i = 0; i < 20000; ++i) {
    Random random(1, Purpose::subset, i);
    const auto subset = random_subset(random, 10, 3);
    REQUIRE(std::set(subset.begin(), subset.end()).size() == 3);
    for (const std::int64_t member : subset) ++drawn.at(static_cast<std::size_t>(member));
  }
  for (const int count : drawn) CHECK(count == doctest::Approx(6000).epsilon(0.05));
}

TEST_CASE("random: a permutation is a bijection for every size") {
  for (std::int64_t n : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 1000, 4097, 60000}) {
    const Permutation permutation(n, 11, 5);
    std::vector<bool> seen(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) seen.at(static_cast<std::size_t>(permutation(i))) = true;
    CAPTURE(n);
    CHECK(std::count(seen.begin(), seen.end(), true) == n);
  }
  const std::int64_t huge = 142'000'000;
  CHECK(Permutation(huge, 1, 0)(huge - 1) < huge);
}

TEST_CASE("random: permutations of a few elements and of many are uniform") {
  for (const std::int64_t n : {5, 100}) {
    std::vector<int> first(static_cast<std::size_t>(n));
    constexpr int kEpochs = 50000;
    for (std::uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
      ++first.at(static_cast<std::size_t>(Permutation(n, 3, epoch)(0)));
    }
    const double expected = kEpochs / static_cast<double>(n);
    double chi_squared = 0;
    for (const int count : first) chi_squared += (count - expected) * (count - expected) / expected;
    CHECK(chi_squared < 3 * static_cast<double>(n) + 10);
  }
}
