// Updates of bundles (`edgeloop diff` makes them) and signatures, for an app: docs/updates.md is what happens to a folder.
//
// Functions may be called from any thread, for one bundle from one at a time; a process that updates it meanwhile is
// EL_USAGE. Codes: EL_FILE for what the file system refuses, no room as well; EL_FORMAT for an update or a bundle that is
// damaged, altered, of another bundle, or not signed so; EL_USAGE. After an error a bundle is as it was, or, where that says
// so, whole all the same.
#ifndef EDGELOOP_UPDATE_H
#define EDGELOOP_UPDATE_H

#include "edgeloop_types.h"

#ifdef __cplusplus
extern "C" {
#endif

// Whose signature is wanted. Ed25519 is the caller's to check, by the library that its platform has: CryptoKit, Tink,
// libsodium, OpenSSL. `verify` is given the key, a message and 64 bytes, and returns 1 where they are the key's signature of
// it, else 0.
typedef struct el_trust {
  uint32_t struct_bytes;  // sizeof(el_trust)
  uint32_t unused;
  const uint8_t* key;  // 32 bytes: what `edgeloop sign --new-key --json` prints as public_hex
  int (*verify)(void* user, const uint8_t* key, const uint8_t* message, size_t bytes, const uint8_t* signature);
  void* user;
} el_trust;

typedef struct el_update_info {
  uint32_t struct_bytes;   // set by the caller: sizeof(el_update_info)
  uint32_t already;        // 1: the bundle was the new one before the call
  uint64_t update_bytes;   // of the update
  uint64_t bundle_bytes;   // of the bundle that comes of it
  uint64_t written_bytes;  // of files that were written; not those that are the old bundle's
} el_update_info;

// Called with the share of the new bundle that is there, 0 … 1, from the calling thread; not 0 ends the call with
// EL_STOPPED, and the next one goes on from what was finished. May be NULL.
typedef int (*el_on_progress)(void* user, double share);

// Reads an update and every part of it. `trust` NULL: signatures are not looked at. `info` may be NULL.
EL_API int el_update_verify(const char* update, const el_trust* trust, el_update_info* info, char* error);
// Makes of the folder `bundle` the bundle that the file `update` is for; the former one stays beside it, as BUNDLE.former.
// Killed at any moment, the folder is the old bundle or the new one, and the same call finishes it. Where the system cannot
// exchange two names there may be no folder then, until the next call of this or el_update_back, or el_update_settle.
EL_API int el_update_apply(const char* bundle, const char* update, const el_trust* trust, el_on_progress progress,
                           void* user, el_update_info* info, char* error);
// The former bundle takes its place again, and the other way round. `trust`: it has to be signed so.
EL_API int el_update_back(const char* bundle, const el_trust* trust, char* error);
// Finishes or takes back what a killed call had begun: before a bundle is opened. Usually there is nothing to do.
EL_API int el_update_settle(const char* bundle, char* error);
// Every file of the folder is what a signature by `trust` says, and there is no other file.
EL_API int el_bundle_verify(const char* bundle, const el_trust* trust, char* error);

#ifdef __cplusplus
}
#endif

#endif
