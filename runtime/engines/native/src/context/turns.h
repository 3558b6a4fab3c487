// A chat template as data: the twin of runtime/text/turns.py, which says what it is.
#pragma once

#include <string>
#include <vector>

#include "record.h"

namespace edgeloop::context {

constexpr uint32_t MOST_MESSAGES = 1u << 16;

enum Role : uint8_t { NOBODY = 0, SYSTEM = 1, USER = 2, ASSISTANT = 3, ANSWER = 4 };
// The role of that name; throws EL_USAGE for others.
Role role_of(const char* name);
const char* name_of(Role role);

struct Message {
  Role role;
  std::string content;
  bool operator==(const Message& other) const { return role == other.role && content == other.content; }
};

class Turns {
 public:
  explicit Turns(Record record);

  bool alternate() const { return order_ == 2; }
  bool takes_system() const { return system_ > 0; }
  uint32_t tables() const { return uint32_t(tables_.size()); }
  // The text of a conversation; throws EL_USAGE for what the template refuses or turns cannot say. `table`: below tables().
  std::string render(const std::vector<Message>& messages, bool answer, uint32_t table) const;

 private:
  enum Strip : uint8_t { NO_STRIP, SPACE, NEWLINES };
  struct Table {
    std::vector<uint32_t> between;   // pairs: four roles, and which of texts_
    std::vector<uint32_t> contents;  // pairs: three roles, and a Content in its bytes
  };
  void check(const std::vector<Message>& messages) const;
  void place(std::string& out, const Table& table, const uint8_t* roles) const;
  static void content(std::string& out, const Table& table, const uint8_t* roles, const std::string& text);

  uint32_t order_, system_, late_, blank_;
  std::vector<std::string> texts_, refused_;
  std::vector<Table> tables_;
};

}  // namespace edgeloop::context
