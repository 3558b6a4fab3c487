// The functions of edgeloop_update.h by words, for what compares folders afterwards (tests/update_program.py):
//   test_update verify UPDATE | apply BUNDLE UPDATE [SHARE] | twice BUNDLE UPDATE | back BUNDLE | settle BUNDLE | signed BUNDLE
// SHARE: where the call is stopped. `twice`: what a second call says while the first is under way. `signed`: by anybody.
// It writes the code and the line. On Windows the environment's KILLED_AT ends the process at its step of that number on the
// disk (elsewhere a library that is loaded before does, test_update.py); with HELD no folder of that name can be renamed, as
// where something has a file in it open.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "edgeloop_update.h"

#if defined(_WIN32)
#include "platform_windows.h"

#include <shellapi.h>

namespace {

void step() {
  static const char* at = std::getenv("KILLED_AT");
  static int left = at ? std::atoi(at) : 0;
  if (left && --left == 0) TerminateProcess(GetCurrentProcess(), 137), Sleep(INFINITE);
}

template <class Function>
Function* real(const char* name) {
  return reinterpret_cast<Function*>(reinterpret_cast<void*>(GetProcAddress(GetModuleHandleA("kernel32"), name)));
}

}  // namespace

// Calls of a function of Windows go through a pointer of such a name: this one is found before that of the system's library.
#define KILLED(name, given, passed)                                             \
  static BOOL WINAPI killed_##name given {                                      \
    step();                                                                     \
    return real<BOOL WINAPI given>(#name) passed;                               \
  }                                                                             \
  extern "C" {                                                                  \
  BOOL(WINAPI* __imp_##name) given = killed_##name;                             \
  }
static BOOL WINAPI moved(const wchar_t* a, const wchar_t* b, DWORD c) {
  step();
  const char* held = std::getenv("HELD");
  const std::string from = edgeloop::utf8(a), end = std::string("\\") + (held ? held : "");
  if (!held || from.size() < end.size() || from.compare(from.size() - end.size(), end.size(), end) != 0)
    return real<BOOL WINAPI(const wchar_t*, const wchar_t*, DWORD)>("MoveFileExW")(a, b, c);
  SetLastError(ERROR_ACCESS_DENIED);
  return FALSE;
}
extern "C" {
BOOL(WINAPI* __imp_MoveFileExW)(const wchar_t* a, const wchar_t* b, DWORD c) = moved;
}
KILLED(CreateDirectoryW, (const wchar_t* a, SECURITY_ATTRIBUTES* b), (a, b))
KILLED(RemoveDirectoryW, (const wchar_t* a), (a))
KILLED(DeleteFileW, (const wchar_t* a), (a))
KILLED(CreateHardLinkW, (const wchar_t* a, const wchar_t* b, SECURITY_ATTRIBUTES* c), (a, b, c))
KILLED(FlushFileBuffers, (HANDLE a), (a))
KILLED(WriteFile, (HANDLE a, const void* b, DWORD c, DWORD* d, OVERLAPPED* e), (a, b, c, d, e))
#endif

namespace {

std::vector<std::string> words_of(int count, char** words) {
  std::vector<std::string> found;
#if defined(_WIN32)
  wchar_t** wide_words = CommandLineToArgvW(GetCommandLineW(), &count);
  for (int i = 0; i < count; i++) found.push_back(edgeloop::utf8(wide_words[i]));
  (void)words;
#else
  for (int i = 0; i < count; i++) found.push_back(words[i]);
#endif
  return found;
}

int stop(void* share, double done) { return done >= *static_cast<double*>(share); }

struct Second {
  const char *bundle, *update;
  bool called;
  char said[EL_ERROR_SIZE];
};

int second(void* user, double) {
  Second& call = *static_cast<Second*>(user);
  if (!call.called) el_update_apply(call.bundle, call.update, nullptr, nullptr, nullptr, nullptr, call.said);
  call.called = true;
  return 0;
}

int anybody(void*, const uint8_t*, const uint8_t*, size_t, const uint8_t*) { return 1; }

}  // namespace

int main(int count, char** given) {
  const std::vector<std::string> words = words_of(count, given);
  const std::string verb = words.size() > 2 ? words[1] : "";
  const char *one = verb.empty() ? nullptr : words[2].c_str(), *other = words.size() > 3 ? words[3].c_str() : nullptr;
  double share = words.size() > 4 ? std::atof(words[4].c_str()) : 2;
  char error[EL_ERROR_SIZE] = "";
  const uint8_t key[32] = {};
  const el_trust trust = {sizeof trust, 0, key, anybody, nullptr};
  el_update_info info = {};
  info.struct_bytes = sizeof info;
  Second call = {one, other, false, ""};
  int code;
  if (verb == "verify") code = el_update_verify(one, nullptr, &info, error);
  else if (verb == "apply") code = el_update_apply(one, other, nullptr, stop, &share, &info, error);
  else if (verb == "twice") code = el_update_apply(one, other, nullptr, second, &call, &info, error);
  else if (verb == "back") code = el_update_back(one, nullptr, error);
  else if (verb == "settle") code = el_update_settle(one, error);
  else if (verb == "signed") code = el_bundle_verify(one, &trust, error);
  else return std::fprintf(stderr, "usage: test_update VERB FOLDER|FILE ...\n"), 2;
  std::printf("%d %u %llu of %llu\n%s\n", code, info.already, (unsigned long long)info.written_bytes,
              (unsigned long long)info.bundle_bytes, verb == "twice" ? call.said : error);
  return 0;
}
