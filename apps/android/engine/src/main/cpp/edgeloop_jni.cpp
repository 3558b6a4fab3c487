// Native.java's functions over edgeloop.h. There is no state here but what a handle points to. Texts are UTF-8 in byte
// arrays. What went wrong is an EdgeloopException with libedgeloop's code and line; no C++ exception leaves a function.
#include <jni.h>

#include <new>
#include <utility>

#include "conversation.h"

using namespace edgeloop_jni;

namespace {

// A Java exception is pending already.
struct Pending {};

void raise(JNIEnv* env, int code, const std::string& line) {
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

std::string text_of(JNIEnv* env, jbyteArray bytes) {
  std::string text(size_t(env->GetArrayLength(bytes)), '\0');
  env->GetByteArrayRegion(bytes, 0, jsize(text.size()), reinterpret_cast<jbyte*>(&text[0]));
  if (text.find('\0') != std::string::npos) throw Error{EL_USAGE, "a text has a zero character, wanted none"};
  return text;
}

std::vector<int64_t> ids_of(JNIEnv* env, jlongArray ids) {
  std::vector<int64_t> found(size_t(env->GetArrayLength(ids)));
  static_assert(sizeof(jlong) == sizeof(int64_t), "ids are 64 bits wide");
  if (!found.empty())
    env->GetLongArrayRegion(ids, 0, jsize(found.size()), reinterpret_cast<jlong*>(found.data()));
  return found;
}

jlongArray numbers(JNIEnv* env, std::initializer_list<jlong> values) {
  jlongArray made = env->NewLongArray(jsize(values.size()));
  if (!made) throw Pending();
  env->SetLongArrayRegion(made, 0, jsize(values.size()), values.begin());
  return made;
}

el_model* model_of(jlong handle) { return reinterpret_cast<el_model*>(handle); }
Conversation& conversation_of(jlong handle) { return *reinterpret_cast<Conversation*>(handle); }

void check_abi(JNIEnv* env, jclass) {
  guarded(env, [] {
    if (el_abi() != EL_ABI)
      throw Error{EL_USAGE, "libedgeloop has interface " + std::to_string(el_abi()) + ", wanted " +
                                std::to_string(EL_ABI) + ": build both from one version"};
  });
}

jlong open(JNIEnv* env, jclass, jbyteArray path, jint threads, jboolean floats, jbyteArray kernels) {
  return guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    const std::string file = text_of(env, path), named = text_of(env, kernels);
    el_open_options options = {};
    options.struct_bytes = sizeof options;
    options.activations = floats ? EL_ACTIVATIONS_FLOAT : EL_ACTIVATIONS_INT8;
    options.threads = uint32_t(threads);
    options.kernels = named.empty() ? nullptr : named.c_str();
    el_model* model = nullptr;
    check(el_open(file.c_str(), &options, &model, error), error);
    return reinterpret_cast<jlong>(model);
  });
}

void close(JNIEnv*, jclass, jlong model) { el_close(model_of(model)); }

el_info info_of(jlong model) {
  char error[EL_ERROR_SIZE];
  el_info info = {};
  info.struct_bytes = sizeof info;
  check(el_model_info(model_of(model), &info, error), error);
  return info;
}

jlongArray info(JNIEnv* env, jclass, jlong model) {
  return guarded(env, [&] {
    const el_info i = info_of(model);
    return numbers(env, {i.depths, i.vocab_size, i.context_length, i.threads, jlong(i.file_bytes)});
  });
}

jbyteArray kernels(JNIEnv* env, jclass, jlong model) {
  return guarded(env, [&] {
    const std::string name = info_of(model).kernels;
    jbyteArray made = env->NewByteArray(jsize(name.size()));
    if (!made) throw Pending();
    env->SetByteArrayRegion(made, 0, jsize(name.size()), reinterpret_cast<const jbyte*>(name.data()));
    return made;
  });
}

jlong new_conversation(JNIEnv* env, jclass, jlong model, jint capacity, jint kv, jbyteArray exit) {
  return guarded(env, [&] {
    return reinterpret_cast<jlong>(
        new Conversation(model_of(model), uint32_t(capacity), uint32_t(kv), text_of(env, exit)));
  });
}

void free_conversation(JNIEnv*, jclass, jlong handle) { delete &conversation_of(handle); }

void sample(JNIEnv* env, jclass, jlong handle, jdouble temperature, jint top_k, jdouble top_p, jdouble min_p,
    jlong seed) {
  guarded(env, [&] {
    if (top_k < 0) throw Error{EL_USAGE, "top_k is " + std::to_string(top_k) + ", wanted 0 or more"};
    el_sampling sampling = {};
    sampling.struct_bytes = sizeof sampling;
    sampling.top_k = uint32_t(top_k);
    sampling.temperature = temperature;
    sampling.top_p = top_p;
    sampling.min_p = min_p;
    sampling.seed = uint64_t(seed);
    conversation_of(handle).sample(sampling);
  });
}

void append(JNIEnv* env, jclass, jlong handle, jlongArray ids) {
  guarded(env, [&] { conversation_of(handle).append(ids_of(env, ids)); });
}

jint length(JNIEnv*, jclass, jlong handle) { return jint(conversation_of(handle).length()); }

void seek(JNIEnv* env, jclass, jlong handle, jint tokens) {
  guarded(env, [&] {
    if (tokens < 0) throw Error{EL_USAGE, "found " + std::to_string(tokens) + " tokens, wanted 0 or more"};
    conversation_of(handle).seek(size_t(tokens));
  });
}

void begin(JNIEnv*, jclass, jlong handle) { conversation_of(handle).begin(); }
void stop(JNIEnv*, jclass, jlong handle) { conversation_of(handle).stop(); }

jlongArray answer(JNIEnv* env, jclass, jlong handle, jint most, jlongArray ends, jobject sink) {
  return guarded(env, [&] {
    jmethodID piece = env->GetMethodID(env->GetObjectClass(sink), "piece", "(JIJ)Z");
    if (!piece) throw Pending();
    const Answer found = conversation_of(handle).answer(
        uint32_t(most), ids_of(env, ends), [&](int64_t token, uint32_t depth, uint64_t nanoseconds) {
          const jboolean more = env->CallBooleanMethod(sink, piece, jlong(token), jint(depth), jlong(nanoseconds));
          if (env->ExceptionCheck()) throw Pending();
          return bool(more);
        });
    return numbers(env, {found.tokens, found.finish, jlong(found.prompt_nanoseconds), jlong(found.nanoseconds)});
  });
}

jlongArray stats(JNIEnv* env, jclass, jlong handle) {
  return guarded(env, [&] {
    const el_stats s = conversation_of(handle).stats();
    return numbers(env, {jlong(s.kv_bytes), jlong(s.rows), jlong(s.calls)});
  });
}

template <typename Function>
JNINativeMethod method(const char* name, const char* signature, Function* function) {
  return {const_cast<char*>(name), const_cast<char*>(signature), reinterpret_cast<void*>(function)};
}

}  // namespace

extern "C" JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM* vm, void*) {
  JNIEnv* env = nullptr;
  if (vm->GetEnv(reinterpret_cast<void**>(&env), JNI_VERSION_1_6) != JNI_OK) return JNI_ERR;
  const JNINativeMethod methods[] = {
      method("checkAbi", "()V", check_abi),
      method("open", "([BIZ[B)J", open),
      method("close", "(J)V", close),
      method("info", "(J)[J", info),
      method("kernels", "(J)[B", kernels),
      method("newConversation", "(JII[B)J", new_conversation),
      method("freeConversation", "(J)V", free_conversation),
      method("sample", "(JDIDDJ)V", sample),
      method("append", "(J[J)V", append),
      method("length", "(J)I", length),
      method("seek", "(JI)V", seek),
      method("begin", "(J)V", begin),
      method("stop", "(J)V", stop),
      method("answer", "(JI[JLedgeloop/Native$Sink;)[J", answer),
      method("stats", "(J)[J", stats),
  };
  jclass type = env->FindClass("edgeloop/Native");
  if (!type || env->RegisterNatives(type, methods, jint(sizeof methods / sizeof *methods)) != JNI_OK) return JNI_ERR;
  return JNI_VERSION_1_6;
}
