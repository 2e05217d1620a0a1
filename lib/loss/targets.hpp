#pragma once
#include <cstdint>

#include <ATen/core/Tensor.h>

#include "comm/communicator.hpp"

namespace allosaur::loss {

/// The teacher's assignment of rows to prototypes, never materialised: row i's target distribution is
/// softmax(logits[i] / temperature + shift). Sinkhorn-Knopp only scales rows and columns of exp(logits / temperature),
/// and the scaling of a sample is the softmax's own normalisation, so one vector over prototypes says it all; softmax
/// centring is the same with shift = -center / temperature.
struct Targets {
  at::Tensor logits;  // f32, f16 or bf16 [n, K], contiguous
  at::Tensor shift;   // f32 [K]
  double temperature = 0.07;
};

/// Collective. Sinkhorn-Knopp (Caron et al. 2020; dinov2/loss/dino_clstoken_loss.py) over the rows of all ranks,
/// `iterations` times: scale each prototype to equal mass, then each sample to mass one. In float32 and the log domain.
/// Ranks may hold any number of rows. Cost a rank and iteration: two all-reduces of K float32.
Targets sinkhorn_knopp(comm::Communicator& group, const at::Tensor& logits, double temperature, int iterations = 3);

/// Softmax centring with the centre as it stands: `center` f32 [K].
Targets centre(const at::Tensor& logits, const at::Tensor& center, double temperature);

/// The exponential moving average of the teacher's mean logits that softmax centring subtracts. As in the official code
/// a batch's mean is folded in when the next batch is centred, so step t uses the batches up to t - 1.
class Center {
 public:
  Center(std::int64_t prototypes, const at::TensorOptions& options, double momentum = 0.9);
  /// The centre to use now; folds in the pending batch mean first.
  const at::Tensor& value();
  /// Collective. Records this batch's mean over all ranks: every rank passes the sum of its means and their number
  /// (rows for DINO; groups for iBOT, whose official centre is the mean over GPUs of each GPU's mean).
  void update(comm::Communicator& group, const at::Tensor& sum, double count);

  /// For checkpoints: f32 [K] each; an undefined pending mean is stored as NaN by state() and restored as such.
  at::Tensor state() const;  ///< [2, K]: centre, pending mean
  void restore(const at::Tensor& state);

 private:
  at::Tensor center_, pending_;  // replaced and never written to, so that a copy keeps what it has
  double momentum_;
};

}  // namespace allosaur::loss
