#pragma once

namespace allosaur::core {

/// What is freed from now on stays with the process: a loop that allocates the same large tensors again and again would
/// spend a good part of its time in the system's page faults. Gives back what is free now.
void keep_freed_memory();

/// Large blocks that are allocated from now on go back to the system when they are freed: for a set-up whose
/// temporaries would leave holes, too small for what the loop behind it allocates, among what stays.
void return_freed_memory();

}  // namespace allosaur::core
