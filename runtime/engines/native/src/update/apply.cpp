#include "apply.h"

#include <algorithm>
#include <cstring>

#include "../error.h"
#include "../sha256.h"
#include "places.h"

namespace edgeloop::update {

namespace {

constexpr const char *SUMS = "SHA256SUMS", *SIGNATURE = "SHA256SUMS.sig";
constexpr uint64_t ROOM = 1 << 20, MOST_SUMS = 16 << 20;
constexpr size_t PIECE = 1 << 20;

Tables tables_of(const OpenFile& file) {
  const uint64_t size = file.size();
  std::vector<uint8_t> bytes(size_t(std::min<uint64_t>(size, HEADER_BYTES)));
  file.read(bytes.data(), bytes.size(), 0);
  bytes.resize(size_t(tables_bytes(bytes.data(), bytes.size(), size)));
  file.read(bytes.data(), bytes.size(), 0);
  return read_tables(std::move(bytes), size);
}

bool signed_by(const el_trust& trust, const std::vector<uint8_t>& message, const uint8_t* signature) {
  return trust.verify(trust.user, trust.key, message.data(), message.size(), signature) == 1;
}

bool has_sha256(const std::string& path, const uint8_t* wanted) {
  uint8_t found[SHA_BYTES];
  sha256_of(path, found);
  return std::memcmp(found, wanted, SHA_BYTES) == 0;
}

bool is(const std::string& path, const Listed& file) {
  return kind_of(path) == Kind::file && size_of(path) == file.size && has_sha256(path, file.sha256);
}

void check_file(const std::string& folder, const Listed& file) {
  if (!is(inside(folder, file.name), file))
    fail(EL_FORMAT, "%.80s: %.80s is missing, damaged or was changed; copy the bundle again", folder.c_str(), file.name.c_str());
}

void check_old(const Places& places, const Tables& tables) {
  places.check_former();
  walk(places.bundle, false, [&](const std::string& name, Kind kind) {
    if (kind != Kind::file) fail(EL_USAGE, "%.120s is a link or a pipe; put the file itself there", name.c_str());
    const auto same = [&](const Listed& file) { return file.name == name; };
    if (std::none_of(tables.old_files.begin(), tables.old_files.end(), same))
      fail(EL_USAGE, "%.120s is no part of the bundle, and would be lost; move it away", name.c_str());
  });
  std::vector<bool> used(tables.old_files.size());
  for (const Copy& copy : tables.copies)
    if (copy.source != FROM_PART) used[copy.source] = true;
  for (size_t i = 0; i < used.size(); i++) {
    const Listed& file = tables.old_files[i];
    const std::string path = inside(places.bundle, file.name);
    // Sizes of all: how large the new bundle may be is by these.
    if (used[i]) check_file(places.bundle, file);
    else if (kind_of(path) != Kind::file || size_of(path) != file.size)
      fail(EL_FORMAT, "%.120s is missing or of another size; copy the bundle again", path.c_str());
  }
}

void check_room(const Places& places, const Tables& tables) {
  uint64_t wanted = ROOM;
  for (const Listed& file : tables.new_files)
    if (tables.unchanged(file) == FROM_PART && kind_of(inside(places.fresh, file.name)) != Kind::file) wanted += file.size;
  const uint64_t free = free_bytes(places.work);
  if (wanted > free)
    fail(EL_FILE, "no room: the update writes %llu bytes, and %llu are free; free some and try again",
         (unsigned long long)wanted, (unsigned long long)free);
}

void write_file(const Places& places, Update& update, const Listed& file) {
  {
    const OpenFile out(places.part, OpenFile::How::write);
    std::vector<uint8_t> piece;
    for (uint32_t i = file.first_copy; i < file.first_copy + file.copies; i++) {
      const Copy& copy = update.tables.copies[i];
      if (copy.source == FROM_PART) {
        const std::vector<uint8_t>& part = update.part(copy.part);
        out.write(part.data(), part.size());
        continue;
      }
      const OpenFile source(inside(places.bundle, update.tables.old_files[copy.source].name), OpenFile::How::read);
      piece.resize(PIECE);
      for (uint64_t at = 0; at < copy.bytes;) {
        const size_t count = size_t(std::min<uint64_t>(PIECE, copy.bytes - at));
        source.read(piece.data(), count, copy.offset + at);
        out.write(piece.data(), count);
        at += count;
      }
    }
    out.sync();
  }
  if (!is(places.part, file))  // from the disk: what counts is what is there
    fail(EL_FORMAT, "the update makes a %.120s that is not what its hash says; copy the update again", file.name.c_str());
  rename_to(places.part, inside(places.fresh, file.name));
}

void build(const Places& places, Update& update, const Progress& progress, el_update_info& info) {
  const Tables& tables = update.tables;
  const std::string name = hexadecimal(tables.new_manifest);
  if (places.noted() != name) {
    places.clear();
    const OpenFile note(places.note, OpenFile::How::write);
    note.write(name.data(), name.size());
    note.sync();
  }
  make_folder(places.fresh);
  check_room(places, tables);
  std::vector<const Listed*> order;
  for (const Listed& file : tables.new_files)
    if (file.name != MANIFEST) order.push_back(&file);
  for (const Listed& file : tables.new_files)
    if (file.name == MANIFEST) order.push_back(&file);
  uint64_t done = 0;
  for (const Listed* file : order) {
    const std::string goal = inside(places.fresh, file->name);
    const uint32_t same = tables.unchanged(*file);
    make_folders(places.fresh, file->name);
    if (same != FROM_PART) remove_file(goal);
    if (same == FROM_PART || !link_to(inside(places.bundle, tables.old_files[same].name), goal)) {
      if (!is(goal, *file)) {
        write_file(places, update, *file);
        info.written_bytes += file->size;
      }
    }
    done += file->size;
    if (progress.call && progress.call(progress.user, info.bundle_bytes ? double(done) / double(info.bundle_bytes) : 1))
      fail(EL_STOPPED, "the update was stopped; the next call goes on");
  }
  std::vector<std::string> folders{places.fresh};
  size_t found_files = 0;
  walk(places.fresh, true, [&](const std::string& found, Kind kind) {
    const auto same = [&](const Listed& file) { return file.name == found; };
    if (kind == Kind::folder) folders.push_back(inside(places.fresh, found));
    else if (std::none_of(tables.new_files.begin(), tables.new_files.end(), same)) remove_file(inside(places.fresh, found));
    else found_files++;
  });
  if (found_files != tables.new_files.size())  // A and a are one file on some systems
    fail(EL_FORMAT, "two files of the update have names that are the same here; no bundle can have both on this system");
  for (size_t i = folders.size(); i--;) sync_folder(folders[i]);
}

}  // namespace

Update::Update(const char* path) : file(path, OpenFile::How::read), tables(tables_of(file)) {
  file.read(signature, sizeof signature, tables.bytes.size());
}

const std::vector<uint8_t>& Update::part(uint32_t number) {
  const Part& part = tables.parts[number];
  part_.resize(size_t(part.bytes));
  file.read(part_.data(), part_.size(), part.start);
  Sha256 sum;
  uint8_t found[SHA_BYTES];
  sum.add(part_.data(), part_.size());
  sum.finish(found);
  if (std::memcmp(found, part.sha256, SHA_BYTES) != 0)
    fail(EL_FORMAT, "part %u of the update is not what its hash says; copy the update again", number);
  return part_;
}

void check(Update& update, const el_trust* trust) {
  if (trust && !signed_by(*trust, update.tables.bytes, update.signature))
    fail(EL_FORMAT, "the update is not signed by the key that is trusted, or was changed; do not use it");
  for (uint32_t i = 0; i < update.tables.parts.size(); i++) update.part(i);
}

void apply(const char* bundle, Update& update, const Progress& progress, el_update_info& info) {
  const Places places(bundle);
  const Tables& tables = update.tables;
  places.alone([&] {
    places.settle();
    const std::string manifest = inside(places.bundle, MANIFEST);
    if (kind_of(manifest) != Kind::file)
      fail(EL_FILE, "%.160s is not a bundle: it has no manifest.json; give a bundle's folder", bundle);
    uint8_t there[SHA_BYTES];
    sha256_of(manifest, there);
    if (std::memcmp(there, tables.new_manifest, SHA_BYTES) == 0) {
      for (const Listed& file : tables.new_files) check_file(places.bundle, file);
      info.already = 1;
      return;
    }
    if (std::memcmp(there, tables.old_manifest, SHA_BYTES) != 0)
      fail(EL_FORMAT, "%.120s is not the bundle that the update is for; get the update for it", bundle);
    check_old(places, tables);
    try {
      build(places, update, progress, info);
    } catch (const Error& error) {
      if (error.code != EL_STOPPED) places.clear();
      throw;
    } catch (...) {
      places.clear();
      throw;
    }
    places.switch_over();
  });
}

void back(const char* bundle, const el_trust* trust) {
  const Places places(bundle);
  places.alone([&] {
    places.settle();
    if (kind_of(inside(places.former, MANIFEST)) != Kind::file)
      fail(EL_USAGE, "%.80s has no former bundle, which is %.80s; nothing was changed", bundle, places.former.c_str());
    if (trust) check_bundle(places.former, trust);
    places.back();
  });
}

void settle(const char* bundle) {
  const Places places(bundle);
  if (kind_of(places.work) != Kind::none) places.alone([&] { places.settle(); });
}

void check_bundle(const std::string& folder, const el_trust* trust) {
  const std::string list = inside(folder, SUMS), sign = inside(folder, SIGNATURE);
  if (kind_of(list) != Kind::file || kind_of(sign) != Kind::file)
    fail(EL_FORMAT, "%.120s is not signed: it has no SHA256SUMS or no SHA256SUMS.sig", folder.c_str());
  const std::vector<uint8_t> text = read_all(list, MOST_SUMS);
  const std::vector<uint8_t> signature = read_all(sign, SIGNATURE_BYTES);
  if (signature.size() != SIGNATURE_BYTES || !signed_by(*trust, text, signature.data()))
    fail(EL_FORMAT, "%.120s is not signed by the key that is trusted, or was changed; do not use it", folder.c_str());
  const std::vector<Sum> sums = read_sums(text);
  size_t found = 0;
  walk(folder, false, [&](const std::string& name, Kind kind) {
    if (name == SUMS || name == SIGNATURE) return;
    const auto same = [&](const Sum& sum) { return sum.name == name; };
    const auto sum = std::find_if(sums.begin(), sums.end(), same);
    if (kind != Kind::file || sum == sums.end())
      fail(EL_FORMAT, "%.120s is not among the files that were signed; move it away", name.c_str());
    if (!has_sha256(inside(folder, name), sum->sha256))
      fail(EL_FORMAT, "%.120s is damaged or was changed after it was signed; do not use it", name.c_str());
    found++;
  });
  if (found != sums.size()) fail(EL_FORMAT, "%.120s lacks files that were signed; copy it again", folder.c_str());
}

}  // namespace edgeloop::update
