// The C interface (edgeloop_update.h).
#include "../guarded.h"
#include "apply.h"

using namespace edgeloop;
using namespace edgeloop::update;

namespace {

void check_trust(const el_trust* trust) {
  if (!trust) return;
  check_struct(trust->struct_bytes, sizeof *trust, "el_trust");
  if (!trust->key || !trust->verify)
    fail(EL_USAGE, "el_trust without key or verify: this library checks no signature by itself, give it a function that does");
}

el_update_info told(const Update& update) {
  el_update_info info = {};
  info.struct_bytes = sizeof info;
  info.update_bytes = update.file.size();
  for (const Listed& file : update.tables.new_files) info.bundle_bytes += file.size;
  return info;
}

void check_info(const el_update_info* info) {
  if (info) check_struct(info->struct_bytes, sizeof *info, "el_update_info");
}

}  // namespace

int el_update_verify(const char* update, const el_trust* trust, el_update_info* info, char* error) {
  return guarded(error, [&] {
    if (!update) fail(EL_USAGE, "update is NULL");
    check_trust(trust);
    check_info(info);
    Update opened(update);
    check(opened, trust);
    if (info) *info = ::told(opened);
  });
}

int el_update_apply(const char* bundle, const char* update, const el_trust* trust, el_on_progress progress, void* user,
    el_update_info* info, char* error) {
  return guarded(error, [&] {
    if (!bundle || !update) fail(EL_USAGE, "bundle or update is NULL");
    check_trust(trust);
    check_info(info);
    Update opened(update);
    check(opened, trust);
    el_update_info found = ::told(opened);
    apply(bundle, opened, {progress, user}, found);
    if (info) *info = found;
  });
}

int el_update_back(const char* bundle, const el_trust* trust, char* error) {
  return guarded(error, [&] {
    if (!bundle) fail(EL_USAGE, "bundle is NULL");
    check_trust(trust);
    back(bundle, trust);
  });
}

int el_update_settle(const char* bundle, char* error) {
  return guarded(error, [&] {
    if (!bundle) fail(EL_USAGE, "bundle is NULL");
    settle(bundle);
  });
}

int el_bundle_verify(const char* bundle, const el_trust* trust, char* error) {
  return guarded(error, [&] {
    if (!bundle || !trust) fail(EL_USAGE, "bundle or trust is NULL");
    check_trust(trust);
    check_bundle(real_path(bundle), trust);
  });
}
