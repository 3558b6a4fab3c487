// Updates of a bundle's folder (edgeloop_update.h), whose signatures Java checks.
#include "edgeloop_update.h"
#include "jni_values.h"

namespace edgeloop_jni {
namespace {

struct Verifier {
  JNIEnv* env;
  jobject checks;
  jmethodID is_signed;
};

// Called by C: a Java exception stays pending, and nothing is signed then.
int verify(void* user, const uint8_t*, const uint8_t* message, size_t bytes, const uint8_t* signature) {
  constexpr jsize SIGNATURE = 64;
  const Verifier& to = *static_cast<Verifier*>(user);
  if (to.env->ExceptionCheck() || bytes > INT32_MAX) return 0;
  jbyteArray text = to.env->NewByteArray(jsize(bytes));
  jbyteArray mark = text ? to.env->NewByteArray(SIGNATURE) : nullptr;
  if (!mark) return 0;
  if (bytes) to.env->SetByteArrayRegion(text, 0, jsize(bytes), reinterpret_cast<const jbyte*>(message));
  to.env->SetByteArrayRegion(mark, 0, SIGNATURE, reinterpret_cast<const jbyte*>(signature));
  const jboolean good = to.env->CallBooleanMethod(to.checks, to.is_signed, text, mark);
  to.env->DeleteLocalRef(text);
  to.env->DeleteLocalRef(mark);
  return !to.env->ExceptionCheck() && good;
}

// Calls `call(trust, error)` with trust in `key`, or null where there is none.
template <typename Call>
void with_trust(JNIEnv* env, jbyteArray key, jobject verifier, Call&& call) {
  char error[EL_ERROR_SIZE];
  int code;
  if (key && verifier) {
    const std::string bytes = bytes_of(env, key);
    if (bytes.size() != 32) throw Error{EL_USAGE, "a key has " + std::to_string(bytes.size()) + " bytes, wanted 32"};
    Verifier to = {env, verifier, env->GetMethodID(env->GetObjectClass(verifier), "signed", "([B[B)Z")};
    if (!to.is_signed) throw Pending();
    auto trust = sized<el_trust>();
    trust.key = reinterpret_cast<const uint8_t*>(bytes.data());
    trust.verify = verify;
    trust.user = &to;
    code = call(&trust, error);
  } else {
    code = call(nullptr, error);
  }
  if (env->ExceptionCheck()) throw Pending();
  check(code, error);
}

jlongArray apply(JNIEnv* env, jclass, jbyteArray bundle, jbyteArray update, jbyteArray key, jobject verifier) {
  return guarded(env, [&] {
    const std::string folder = text_of(env, bundle), file = text_of(env, update);
    auto info = sized<el_update_info>();
    with_trust(env, key, verifier, [&](const el_trust* trust, char* error) {
      return el_update_apply(folder.c_str(), file.c_str(), trust, nullptr, nullptr, &info, error);
    });
    return java_numbers(env, {info.already, int64_t(info.update_bytes), int64_t(info.bundle_bytes), int64_t(info.written_bytes)});
  });
}

void back(JNIEnv* env, jclass, jbyteArray bundle, jbyteArray key, jobject verifier) {
  guarded(env, [&] {
    const std::string folder = text_of(env, bundle);
    with_trust(env, key, verifier,
        [&](const el_trust* trust, char* error) { return el_update_back(folder.c_str(), trust, error); });
  });
}

void settle(JNIEnv* env, jclass, jbyteArray bundle) {
  guarded(env, [&] {
    char error[EL_ERROR_SIZE];
    check(el_update_settle(text_of(env, bundle).c_str(), error), error);
  });
}

}  // namespace

const std::vector<JNINativeMethod> UPDATE_METHODS = {
    method("applyUpdate", "([B[B[BLedgeloop/Native$Verifier;)[J", apply),
    method("updateBack", "([B[BLedgeloop/Native$Verifier;)V", back),
    method("settleUpdate", "([B)V", settle),
};

}  // namespace edgeloop_jni
