// What lies beside a bundle that is updated, and how names change hands: as runtime/update/places.py has it.
#pragma once

#include <functional>
#include <string>

namespace edgeloop::update {

struct Places {
  explicit Places(const char* path);

  std::string bundle, parent, work, former, fresh, part, old, gone, note;

  // Runs `body` while no other process updates this bundle.
  void alone(const std::function<void()>& body) const;
  void settle() const;
  void switch_over() const;
  void back() const;
  void clear() const;
  void check_former() const;
  // Which manifest is being built, in hexadecimal; empty: none.
  std::string noted() const;

 private:
  // `other` is the bundle, which is `old` then.
  void put_in_place(const std::string& other) const;
  void keep_former() const;
};

std::string hexadecimal(const uint8_t* digest);

}  // namespace edgeloop::update
