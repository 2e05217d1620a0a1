#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace allosaur::comm {

/// A thread that executes pieces of work in the order in which they were submitted.
class Worker {
 public:
  struct Job {
    std::function<void()> work;
    std::exception_ptr error;
    bool done = false;
  };

  Worker();
  /// Finishes what is queued (at once when abandoned) and joins.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  std::shared_ptr<Job> submit(std::function<void()> work);
  /// Returns when the work is done, or rethrows what it threw.
  void wait(Job& job);
  /// Gives the job a second to be done; then everything queued fails, and work under way is expected to look at
  /// abandoned() and throw. Returns when the job is out of the thread's hands.
  void abandon(Job& job) noexcept;
  void abandon() noexcept;
  bool abandoned() const noexcept { return abandoned_; }

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable submitted_, finished_;
  std::deque<std::shared_ptr<Job>> queue_;
  bool closing_ = false;
  std::atomic<bool> abandoned_ = false;
  std::thread thread_;
};

}  // namespace allosaur::comm
