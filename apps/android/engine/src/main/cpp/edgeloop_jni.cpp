// What the JVM calls when it loads the library: the functions of Native.java are bound.
#include "jni_values.h"

extern "C" JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM* vm, void*) {
  using namespace edgeloop_jni;
  JNIEnv* env = nullptr;
  if (vm->GetEnv(reinterpret_cast<void**>(&env), JNI_VERSION_1_6) != JNI_OK) return JNI_ERR;
  jclass type = env->FindClass("edgeloop/Native");
  if (!type) return JNI_ERR;
  for (const auto* methods : {&MODEL_METHODS, &TEXT_METHODS, &CONTEXT_METHODS, &UPDATE_METHODS})
    if (env->RegisterNatives(type, methods->data(), jint(methods->size())) != JNI_OK) return JNI_ERR;
  return JNI_VERSION_1_6;
}
