/* The inflater of libdeflate. */

#include "lib/deflate_decompress.c"
#include "lib/utils.c"
#include "lib/x86/cpu_features.c"
