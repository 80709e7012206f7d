/* Preloaded ahead of the virtual GPU, whose memory reads as zero: what the host reads next from the device can be told.
   Code whose shapes depend on values (how many tokens are no padding) then allocates as it would on a real device. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <string.h>

enum { DEVICE_TO_HOST = 2, MOST = 16 };
static long long values[MOST];
static int first, count;

void tell(long long value) {
    if (count < MOST) values[(first + count++) % MOST] = value;
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    static int (*real)(void *, const void *, size_t, int, void *);
    if (!real) real = (int (*)(void *, const void *, size_t, int, void *))dlsym(RTLD_NEXT, "cudaMemcpyAsync");
    int result = real(to, from, bytes, kind, stream);
    if (kind == DEVICE_TO_HOST && count && bytes <= sizeof *values) {
        memcpy(to, &values[first], bytes); /* little-endian */
        first = (first + 1) % MOST;
        count--;
    }
    return result;
}
