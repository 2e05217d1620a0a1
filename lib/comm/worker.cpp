#include "comm/worker.hpp"

#include <chrono>
#include <utility>

#include "core/error.hpp"

namespace allosaur::comm {

Worker::Worker() : thread_([this] { run(); }) {}

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  submitted_.notify_one();
  thread_.join();
}

std::shared_ptr<Worker::Job> Worker::submit(std::function<void()> work) {
  auto job = std::make_shared<Job>();
  job->work = std::move(work);
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(job);
  }
  submitted_.notify_one();
  return job;
}

void Worker::wait(Job& job) {
  std::unique_lock lock(mutex_);
  finished_.wait(lock, [&] { return job.done; });
  if (job.error) std::rethrow_exception(std::exchange(job.error, nullptr));
}

void Worker::abandon(Job& job) noexcept {
  std::unique_lock lock(mutex_);
  if (!abandoned_ && finished_.wait_for(lock, std::chrono::seconds(1), [&] { return job.done; })) return;
  abandoned_ = true;
  finished_.wait(lock, [&] { return job.done; });
}

void Worker::abandon() noexcept {
  abandoned_ = true;
}

void Worker::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    submitted_.wait(lock, [&] { return closing_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const auto job = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    std::exception_ptr error;
    try {
      if (abandoned_) throw core::PeerError("This rank has given up on its group after an error.");
      job->work();
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    job->work = nullptr;
    job->error = std::move(error);
    job->done = true;
    finished_.notify_all();
  }
}

}  // namespace allosaur::comm
