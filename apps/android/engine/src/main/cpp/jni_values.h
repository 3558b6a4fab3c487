// What crosses between Java and edgeloop.h, and how failures do. Texts are UTF-8 in byte arrays: JNI's own strings are
// another encoding. There is no state here; no C++ exception leaves a function.
#ifndef EDGELOOP_JNI_VALUES_H
#define EDGELOOP_JNI_VALUES_H

#include <jni.h>

#include <cstdint>
#include <initializer_list>
#include <new>
#include <string>
#include <vector>

#include "edgeloop.h"

namespace edgeloop_jni {

// A code of edgeloop.h and its line.
struct Error {
  int code;
  std::string line;
};

// A Java exception is pending already.
struct Pending {};

inline void check(int code, const char* line) {
  if (code != EL_OK) throw Error{code, line};
}

inline void raise(JNIEnv* env, int code, const std::string& line) {
  jclass type = env->FindClass("edgeloop/EdgeloopException");
  if (!type) return;
  jmethodID make = env->GetMethodID(type, "<init>", "(I[B)V");
  jbyteArray bytes = make ? env->NewByteArray(jsize(line.size())) : nullptr;
  if (!bytes) return;
  env->SetByteArrayRegion(bytes, 0, jsize(line.size()), reinterpret_cast<const jbyte*>(line.data()));
  jobject thrown = env->NewObject(type, make, jint(code), bytes);
  if (thrown) env->Throw(static_cast<jthrowable>(thrown));
}

// What `body` gives, or 0 with a Java exception.
template <typename Body>
auto guarded(JNIEnv* env, Body&& body) -> decltype(body()) {
  using Result = decltype(body());
  try {
    return body();
  } catch (const Pending&) {
  } catch (const Error& error) {
    raise(env, error.code, error.line);
  } catch (const std::bad_alloc&) {
    raise(env, EL_MEMORY, "no memory");
  } catch (...) {
    raise(env, EL_USAGE, "an unknown error");
  }
  return Result();
}

inline std::string bytes_of(JNIEnv* env, jbyteArray bytes) {
  std::string text(size_t(env->GetArrayLength(bytes)), '\0');
  env->GetByteArrayRegion(bytes, 0, jsize(text.size()), reinterpret_cast<jbyte*>(&text[0]));
  return text;
}

// For what C takes as text that ends with a zero byte.
inline std::string text_of(JNIEnv* env, jbyteArray bytes) {
  std::string text = bytes_of(env, bytes);
  if (text.find('\0') != std::string::npos) throw Error{EL_USAGE, "a text has a zero character, wanted none"};
  return text;
}

inline std::vector<std::string> texts_of(JNIEnv* env, jobjectArray texts) {
  std::vector<std::string> found(size_t(env->GetArrayLength(texts)));
  for (size_t i = 0; i < found.size(); i++) {
    auto bytes = static_cast<jbyteArray>(env->GetObjectArrayElement(texts, jsize(i)));
    found[i] = text_of(env, bytes);
    env->DeleteLocalRef(bytes);
  }
  return found;
}

inline std::vector<int64_t> ids_of(JNIEnv* env, jlongArray ids) {
  static_assert(sizeof(jlong) == sizeof(int64_t), "ids are 64 bits wide");
  std::vector<int64_t> found(size_t(env->GetArrayLength(ids)));
  if (!found.empty()) env->GetLongArrayRegion(ids, 0, jsize(found.size()), reinterpret_cast<jlong*>(found.data()));
  return found;
}

inline jlongArray java_numbers(JNIEnv* env, const int64_t* values, size_t count) {
  jlongArray made = env->NewLongArray(jsize(count));
  if (!made) throw Pending();
  if (count) env->SetLongArrayRegion(made, 0, jsize(count), reinterpret_cast<const jlong*>(values));
  return made;
}

inline jlongArray java_numbers(JNIEnv* env, std::initializer_list<int64_t> values) {
  return java_numbers(env, values.begin(), values.size());
}

inline jbyteArray java_bytes(JNIEnv* env, const char* text, size_t bytes) {
  jbyteArray made = env->NewByteArray(jsize(bytes));
  if (!made) throw Pending();
  if (bytes) env->SetByteArrayRegion(made, 0, jsize(bytes), reinterpret_cast<const jbyte*>(text));
  return made;
}

inline jobjectArray java_texts(JNIEnv* env, const std::vector<std::string>& texts) {
  jclass type = env->FindClass("[B");
  jobjectArray made = type ? env->NewObjectArray(jsize(texts.size()), type, nullptr) : nullptr;
  if (!made) throw Pending();
  for (size_t i = 0; i < texts.size(); i++) {
    jbyteArray each = java_bytes(env, texts[i].data(), texts[i].size());
    env->SetObjectArrayElement(made, jsize(i), each);
    env->DeleteLocalRef(each);
  }
  return made;
}

// A role, a text, a role …, as el_message has them; `texts` lives as long as they.
inline std::vector<el_message> messages_of(const std::vector<std::string>& texts) {
  if (texts.size() % 2) throw Error{EL_USAGE, "a message without a text"};
  std::vector<el_message> found;
  for (size_t i = 0; i < texts.size(); i += 2) found.push_back({texts[i].c_str(), texts[i + 1].c_str()});
  return found;
}

// The whole text, or all ids, that a function like snprintf has: `call(into, room, &count, error)`.
template <typename Values, typename Call>
Values whole(Call&& call) {
  char error[EL_ERROR_SIZE];
  size_t count = 0;
  check(call(nullptr, size_t(0), &count, error), error);
  Values found(count, typename Values::value_type());
  if (count) check(call(&found[0], count, &count, error), error);
  return found;
}

template <typename Struct>
Struct sized() {
  Struct made = {};
  made.struct_bytes = sizeof made;
  return made;
}

template <typename Function>
JNINativeMethod method(const char* name, const char* signature, Function* function) {
  return {const_cast<char*>(name), const_cast<char*>(signature), reinterpret_cast<void*>(function)};
}

// The methods of each file, which JNI_OnLoad registers.
extern const std::vector<JNINativeMethod> MODEL_METHODS, TEXT_METHODS, CONTEXT_METHODS, UPDATE_METHODS;

}  // namespace edgeloop_jni

#endif
