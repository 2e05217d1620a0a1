// The production step against iterations of the official implementation (tests/data/golden/*/batch_*).
#include "replay/replay.hpp"
#include "testing.hpp"

namespace allosaur {
namespace {

void compare(const std::string& fixture) {
  int quantities = 0;
  testing::replay(testing::world(), testing::data_directory() / "golden" / fixture, [&](const testing::Quantity& q) {
    ++quantities;
    CAPTURE(q.kind);
    CAPTURE(q.name);
    CAPTURE(q.ours);
    CAPTURE(q.theirs);
    CHECK(q.difference <= q.tolerance);
  });
  CHECK(quantities > 100);
}

TEST_CASE("iterations equal the official ones: softmax centring, shared head, MLP") {
  compare("centering_shared_mlp");
}
TEST_CASE("iterations equal the official ones: Sinkhorn-Knopp, separate heads, SwiGLU, stochastic depth") {
  compare("sinkhorn_separate_swiglu");
}

}  // namespace
}  // namespace allosaur
