// Applies updates and checks signatures: as runtime/update/apply.py and runtime/bundle/signature.py do, but for the
// manifest, which is JSON and is not read here: its hash is.
#pragma once

#include "../edgeloop_update.h"
#include "disk.h"
#include "file.h"

namespace edgeloop::update {

struct Update {
  explicit Update(const char* path);
  // The bytes of a part; an Error where they are not what its hash says.
  const std::vector<uint8_t>& part(uint32_t number);

  OpenFile file;
  Tables tables;
  uint8_t signature[SIGNATURE_BYTES];

 private:
  std::vector<uint8_t> part_;
};

struct Progress {
  el_on_progress call;
  void* user;
};

// Everything of the update, and its signature where one is wanted.
void check(Update& update, const el_trust* trust);
void apply(const char* bundle, Update& update, const Progress& progress, el_update_info& info);
void back(const char* bundle, const el_trust* trust);
void settle(const char* bundle);
void check_bundle(const std::string& folder, const el_trust* trust);

}  // namespace edgeloop::update
