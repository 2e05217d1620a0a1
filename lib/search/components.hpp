#pragma once
#include <cstdint>
#include <vector>

#include "comm/communicator.hpp"

namespace allosaur::search {

/// An undirected edge between two rows of a table split over ranks.
struct Edge {
  std::int64_t a, b;
};

/// Collective. Connected components of a graph over all ranks. This rank holds `rows` of the vertices (numbered over
/// ranks in rank order) and any of the edges, which may join any vertices; repeated edges and loops do no harm. Returns
/// for each of this rank's vertices the smallest vertex of its component. Exact, and the same for any number of ranks
/// and any distribution of the edges.
///
/// Every round each remaining vertex that has a smaller neighbour takes its smallest one for parent, trees are
/// flattened by pointer jumping, and edges move to the roots. A root that survived because all its neighbours were
/// larger has one that found a smaller root, or found it; so two rounds at least halve the roots of a component that is
/// not finished. Cost a rank, for n vertices and m edges over W ranks: at most 2 log2(n) rounds (3 or 4 in practice) of
/// 2 + log2(depth) exchanges with every rank, 16 bytes for each distinct edge or open vertex of the rank; memory 8 n /
/// W + 32 m / W bytes.
std::vector<std::int64_t> connected_components(comm::Communicator& group, std::vector<Edge> edges, std::int64_t rows);

}  // namespace allosaur::search
