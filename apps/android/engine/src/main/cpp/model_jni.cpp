// Models: Native.java's functions over el_model.
#include "jni_values.h"

namespace edgeloop_jni {
namespace {

el_model* model_of(jlong handle) { return reinterpret_cast<el_model*>(handle); }

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
    auto options = sized<el_open_options>();
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
  auto info = sized<el_info>();
  check(el_model_info(model_of(model), &info, error), error);
  return info;
}

el_about about_of(jlong model) {
  char error[EL_ERROR_SIZE];
  auto about = sized<el_about>();
  check(el_model_about(model_of(model), &about, error), error);
  return about;
}

jlongArray info(JNIEnv* env, jclass, jlong model) {
  return guarded(env, [&] {
    const el_info i = info_of(model);
    const el_about a = about_of(model);
    return java_numbers(env, {i.depths, i.vocab_size, i.context_length, i.threads, int64_t(i.file_bytes), a.turns,
                                 a.system, a.thinking});
  });
}

jobjectArray names(JNIEnv* env, jclass, jlong model) {
  return guarded(env, [&] {
    const el_about a = about_of(model);
    std::vector<std::string> found = {info_of(model).kernels, a.name};
    found.insert(found.end(), a.exits, a.exits + a.exits_count);
    return java_texts(env, found);
  });
}

jlongArray ends(JNIEnv* env, jclass, jlong model) {
  return guarded(env, [&] {
    const el_about a = about_of(model);
    return java_numbers(env, a.ends, a.ends_count);
  });
}

jbyteArray render(JNIEnv* env, jclass, jlong model, jobjectArray texts, jint flags) {
  return guarded(env, [&] {
    const std::vector<std::string> given = texts_of(env, texts);
    const std::vector<el_message> messages = messages_of(given);
    const auto found = whole<std::string>([&](char* into, size_t room, size_t* count, char* error) {
      return el_render(model_of(model), messages.data(), uint32_t(messages.size()), uint32_t(flags), into, room, count,
          error);
    });
    return java_bytes(env, found.data(), found.size());
  });
}

}  // namespace

const std::vector<JNINativeMethod> MODEL_METHODS = {
    method("checkAbi", "()V", check_abi),
    method("open", "([BIZ[B)J", open),
    method("close", "(J)V", close),
    method("info", "(J)[J", info),
    method("names", "(J)[[B", names),
    method("ends", "(J)[J", ends),
    method("render", "(J[[BI)[B", render),
};

}  // namespace edgeloop_jni
