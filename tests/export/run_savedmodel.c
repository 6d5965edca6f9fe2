/* Runs a string -> float or string signature of a SavedModel through TensorFlow's C API: no Python, no keras.
 *
 *   run_savedmodel DIR INPUT_OPERATION OUTPUT_OPERATION OUTPUT_INDEX LIBRARY... -- TEXT...
 *
 * LIBRARY: the shared objects with TensorFlow Text's operations. Prints one line of numbers per text,
 * or one text per text, with "\\n" for a line end.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tensorflow/c/c_api.h"
#include "tensorflow/c/tf_tstring.h"

static void check(TF_Status *status, const char *what) {
  if (TF_GetCode(status) == TF_OK) return;
  fprintf(stderr, "%s: %s\n", what, TF_Message(status));
  exit(1);
}

static TF_Operation *operation(TF_Graph *graph, const char *name) {
  TF_Operation *found = TF_GraphOperationByName(graph, name);
  if (!found) {
    fprintf(stderr, "no operation %s\n", name);
    exit(1);
  }
  return found;
}

int main(int count, char **arguments) {
  TF_Status *status = TF_NewStatus();
  int place = 5;
  for (; place < count && strcmp(arguments[place], "--"); place++) {
    TF_LoadLibrary(arguments[place], status);
    check(status, arguments[place]);
  }
  char **texts = arguments + place + 1;
  int64_t rows = count - place - 1;

  TF_Graph *graph = TF_NewGraph();
  TF_SessionOptions *options = TF_NewSessionOptions();
  const char *tags[] = {"serve"};
  TF_Session *session = TF_LoadSessionFromSavedModel(options, NULL, arguments[1], tags, 1, graph,
                                                     NULL, status);
  check(status, "load");

  TF_Tensor *fed = TF_AllocateTensor(TF_STRING, &rows, 1, rows * sizeof(TF_TString));
  TF_TString *strings = TF_TensorData(fed);
  for (int64_t row = 0; row < rows; row++) {
    TF_StringInit(&strings[row]);
    TF_StringCopy(&strings[row], texts[row], strlen(texts[row]));
  }
  TF_Output input = {operation(graph, arguments[2]), 0};
  TF_Output output = {operation(graph, arguments[3]), atoi(arguments[4])};
  TF_Tensor *got = NULL;
  TF_SessionRun(session, NULL, &input, &fed, 1, &output, &got, 1, NULL, 0, NULL, status);
  check(status, "run");

  if (TF_TensorType(got) == TF_STRING) {
    const TF_TString *found = TF_TensorData(got);
    for (int64_t row = 0; row < rows; row++) {
      const char *text = TF_StringGetDataPointer(&found[row]);
      for (size_t i = 0; i < TF_StringGetSize(&found[row]); i++)
        text[i] == '\n' ? (void)fputs("\\n", stdout) : (void)putchar(text[i]);
      putchar('\n');
    }
    return 0;
  }
  const float *numbers = TF_TensorData(got);
  int64_t columns = TF_TensorElementCount(got) / rows;
  for (int64_t row = 0; row < rows; row++) {
    for (int64_t column = 0; column < columns; column++)
      printf("%.9g%c", numbers[row * columns + column], column + 1 < columns ? ' ' : '\n');
  }
  return 0;
}
