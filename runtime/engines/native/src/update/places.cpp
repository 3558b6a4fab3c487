#include "places.h"

#include "../error.h"
#include "disk.h"
#include "file.h"

namespace edgeloop::update {

Places::Places(const char* path) : bundle(real_path(path)) {
  const size_t slash = bundle.rfind('/');
  const std::string name = bundle.substr(slash + 1);
  parent = bundle.substr(0, slash + 1);
  if (name.empty()) fail(EL_USAGE, "%.160s is no bundle; give a bundle's folder", bundle.c_str());
  work = parent + "." + name + ".update";
  former = bundle + ".former";
  fresh = work + "/new", part = work + "/part", old = work + "/old", gone = work + "/gone", note = work + "/for";
}

void Places::alone(const std::function<void()>& body) const {
  LockedFolder held(work);
  const auto leave = [&] {
    if (kind_of(fresh) == Kind::none && kind_of(old) == Kind::none) held.remove();
  };
  try {
    body();
  } catch (...) {
    leave();
    throw;
  }
  leave();
}

std::string Places::noted() const {
  if (kind_of(note) != Kind::file || size_of(note) != 2 * SHA_BYTES) return "";
  const std::vector<uint8_t> text = read_all(note, 2 * SHA_BYTES);
  return std::string(text.begin(), text.end());
}

void Places::settle() const {
  if (kind_of(old) != Kind::folder && kind_of(fresh) == Kind::folder) {
    const std::string manifest = inside(bundle, MANIFEST);
    if (kind_of(manifest) == Kind::file) {
      uint8_t digest[SHA_BYTES];
      sha256_of(manifest, digest);
      if (hexadecimal(digest) == noted()) rename_to(fresh, old);  // the names were exchanged, and no more
    }
  }
  if (kind_of(old) != Kind::folder) return;
  if (kind_of(bundle) == Kind::none) rename_to(old, bundle);
  else keep_former();
}

void Places::put_in_place(const std::string& other) const {
  rename_to(bundle, old);
  try {
    rename_to(other, bundle);
  } catch (...) {
    rename_to(old, bundle);
    throw;
  }
}

void Places::switch_over() const {
  if (exchange(fresh, bundle)) {
    sync_folder(parent);
    rename_to(fresh, old);
  } else {
    put_in_place(fresh);
    sync_folder(parent);
  }
  keep_former();
}

void Places::back() const {
  if (!exchange(former, bundle)) {
    put_in_place(former);
    rename_to(old, former);
  }
  sync_folder(parent);
}

void Places::keep_former() const {
  remove_tree(gone);
  if (kind_of(former) != Kind::none) rename_to(former, gone);
  rename_to(old, former);
  sync_folder(parent);
  remove_tree(gone);
}

void Places::clear() const {
  remove_tree(fresh);
  remove_file(part);
}

void Places::check_former() const {
  if (kind_of(former) != Kind::none && kind_of(inside(former, MANIFEST)) != Kind::file)
    fail(EL_USAGE, "%.160s is in the way: it is no bundle; move it elsewhere", former.c_str());
}

std::string hexadecimal(const uint8_t* digest) {
  std::string text;
  for (size_t i = 0; i < SHA_BYTES; i++) {
    text += "0123456789abcdef"[digest[i] >> 4];
    text += "0123456789abcdef"[digest[i] & 15];
  }
  return text;
}

}  // namespace edgeloop::update
