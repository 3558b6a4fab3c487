// What every header file of the C interface uses. A host includes edgeloop.h, which brings in all of them.
#ifndef EDGELOOP_TYPES_H
#define EDGELOOP_TYPES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define EL_API __declspec(dllexport)
#else
#define EL_API __attribute__((visibility("default")))
#endif

#define EL_ABI 2  // changes when a caller that was compiled with another header would be wrong
#define EL_ERROR_SIZE 256

typedef struct el_model el_model;      // edgeloop.h
typedef struct el_session el_session;  // edgeloop.h
typedef struct el_text el_text;        // edgeloop_text.h

typedef enum el_code {
  EL_OK = 0,
  EL_FILE = 1,     // the file cannot be opened or read
  EL_FORMAT = 2,   // it is no model.lanes file, one of another version, truncated or altered
  EL_USAGE = 3,    // an argument is not what it may be
  EL_MEMORY = 4,   // there is no room for it
  EL_STOPPED = 5,  // el_stop was called
} el_code;

#ifdef __cplusplus
}
#endif

#endif
