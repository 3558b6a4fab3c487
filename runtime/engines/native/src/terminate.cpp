// What an exception that nobody catches ends with. The C++ library's own handler writes its type in words, for which it brings
// a reader of mangled names: a twentieth of this library. Nothing here throws past a function of edgeloop.h.
#include <cstddef>
#include <cstdlib>

namespace __gnu_cxx {

void __verbose_terminate_handler();  // of libstdc++: a static library's is linked where there is no other
void __verbose_terminate_handler() { std::abort(); }

}  // namespace __gnu_cxx

extern "C" {

char* __cxa_demangle(const char* name, char* buffer, size_t* size, int* status);  // that reader; libc++'s handler wants it by name
char* __cxa_demangle(const char*, char*, size_t*, int* status) {
  if (status) *status = -1;  // no memory: the handler writes the name as it is
  return nullptr;
}

}  // extern "C"
