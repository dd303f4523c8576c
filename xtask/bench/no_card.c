/* A driver of CUDA without a card: its memory is the host's, and launches do nothing. The numbers of an H200 are what it says of itself.
   starts.py times starts of programs with it: what NVRTC and the host do is real, what the card does takes no time.

       cc -shared -fPIC -O1 -o libcuda.so xtask/bench/no_card.c

   Under this name alone: NVRTC looks for libcuda.so.1, and would ask for more than this has. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

typedef int Result;
typedef unsigned long long Address;
enum { SUCCESS = 0, OUT_OF_MEMORY = 2, NOT_SUPPORTED = 801 };

static const size_t GIB = 1 << 30;
static const size_t PAGE = 4096;
/* Larger copies take time that is not the program's, and nobody reads what they bring. */
static const size_t LARGEST_COPY = 1 << 16;
static long modules, launches, bytes, most_bytes;

__attribute__((destructor)) static void report(void) {
    if (modules > 0)
        fprintf(stderr, "no card: %ld modules, %ld launches, %ld MiB at most\n", modules, launches, most_bytes >> 20);
}

/* Memory: a page before it has its size. Untouched pages take none of the host's. */
static Result take(Address *address, size_t size) {
    size_t all = (size + 2 * PAGE - 1) / PAGE * PAGE;
    void *pages = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED)
        return OUT_OF_MEMORY;
    *(size_t *)pages = all;
    bytes += all - PAGE;
    most_bytes = bytes > most_bytes ? bytes : most_bytes;
    *address = (Address)pages + PAGE;
    return SUCCESS;
}
static Result give(Address address) {
    size_t *pages = (size_t *)(address - PAGE);
    bytes -= *pages - PAGE;
    munmap(pages, *pages);
    return SUCCESS;
}
static Result copy(void *to, const void *from, size_t size) {
    if (size <= LARGEST_COPY)
        memcpy(to, from, size);
    return SUCCESS;
}
static Result handle(void **made) {
    *made = malloc(1);
    return SUCCESS;
}
#define MADE_BY(function, ...) Result function(void **made, ##__VA_ARGS__) { return handle(made); }
#define DONE(function, ...) Result function(__VA_ARGS__) { return SUCCESS; }

DONE(cuInit, unsigned flags)
Result cuDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
Result cuDeviceGetCount(int *count) { return *count = 1, SUCCESS; }
Result cuDeviceGet(int *device, int index) { return *device = index, SUCCESS; }
Result cuDeviceGetName(char *name, int size, int device) { return snprintf(name, size, "NVIDIA H200"), SUCCESS; }
Result cuDeviceGetPCIBusId(char *id, int size, int device) { return snprintf(id, size, "0000:01:00.0"), SUCCESS; }
Result cuDeviceGetUuid_v2(char *uuid, int device) { return memset(uuid, 1, 16), SUCCESS; }
Result cuDeviceGetLuid(char *luid, unsigned *mask, int device) { return NOT_SUPPORTED; }
Result cuDeviceTotalMem_v2(size_t *size, int device) { return *size = 140 * GIB, SUCCESS; }
Result cuDeviceCanAccessPeer(int *can, int device, int peer) { return *can = 0, SUCCESS; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: case 2: case 3: *value = 1024; break; /* threads of a block */
    case 4: *value = 64; break;
    case 5: *value = 2147483647; break; /* blocks of a grid */
    case 6: case 7: *value = 65535; break;
    case 8: *value = 48 << 10; break; /* shared memory of a block */
    case 10: *value = 32; break; /* threads of a warp */
    case 12: case 82: *value = 64 << 10; break; /* registers */
    case 16: *value = 132; break; /* multiprocessors */
    case 38: *value = 50 << 20; break; /* bytes of the L2 cache */
    case 39: *value = 2048; break; /* threads of a multiprocessor */
    case 75: *value = 9; break; /* compute capability */
    case 76: *value = 0; break;
    case 81: *value = 228 << 10; break; /* shared memory of a multiprocessor */
    case 97: *value = 227 << 10; break; /* of a block that asks for it */
    default: *value = 1;
    }
    return SUCCESS;
}
Result cuDevicePrimaryCtxRetain(void **context, int device) { return handle(context); }
DONE(cuDevicePrimaryCtxRelease_v2, int device)
DONE(cuCtxSetCurrent, void *context)
MADE_BY(cuCtxGetCurrent)
DONE(cuCtxSynchronize, void)
Result cuCtxGetStreamPriorityRange(int *least, int *greatest) { return *least = 0, *greatest = -5, SUCCESS; }
Result cuMemGetInfo_v2(size_t *left, size_t *all) { return *left = 139 * GIB, *all = 140 * GIB, SUCCESS; }

Result cuMemAlloc_v2(Address *address, size_t size) { return take(address, size); }
Result cuMemAllocAsync(Address *address, size_t size, void *stream) { return take(address, size); }
Result cuMemAllocHost_v2(Address *address, size_t size) { return take(address, size); }
Result cuMemFree_v2(Address address) { return give(address); }
Result cuMemFreeAsync(Address address, void *stream) { return give(address); }
Result cuMemFreeHost(Address address) { return give(address); }
Result cuMemcpyHtoDAsync_v2(void *to, const void *from, size_t size, void *stream) { return copy(to, from, size); }
Result cuMemcpyDtoDAsync_v2(void *to, const void *from, size_t size, void *stream) { return copy(to, from, size); }
/* The first numbers that are read are the answer to whether 1 + 1 is 2 on this card. */
Result cuMemcpyDtoHAsync_v2(void *to, const void *from, size_t size, void *stream) {
    static int has_read;
    if (!has_read++)
        for (float *number = to; (void *)(number + 1) <= to + size; number++)
            *number = 2;
    else
        copy(to, from, size);
    return SUCCESS;
}
DONE(cuMemsetD8Async, Address address, unsigned char value, size_t count, void *stream)
DONE(cuMemcpy2DAsync_v2, void *what, void *stream)

MADE_BY(cuStreamCreate, unsigned flags)
MADE_BY(cuStreamCreateWithPriority, unsigned flags, int priority)
DONE(cuStreamDestroy_v2, void *stream)
DONE(cuStreamSynchronize, void *stream)
DONE(cuStreamQuery, void *stream)
DONE(cuStreamWaitEvent, void *stream, void *event, unsigned flags)
MADE_BY(cuEventCreate, unsigned flags)
DONE(cuEventDestroy_v2, void *event)
DONE(cuEventRecord, void *event, void *stream)
DONE(cuEventSynchronize, void *event)
DONE(cuEventQuery, void *event)
Result cuEventElapsedTime_v2(float *time, void *start, void *end) { return *time = 1, SUCCESS; }

Result cuModuleLoadData(void **module, const void *image) { return modules++, handle(module); }
DONE(cuModuleUnload, void *module)
Result cuModuleGetFunction(void **function, void *module, const char *name) { return *function = module, SUCCESS; }
DONE(cuFuncSetAttribute, void *function, int attribute, int value)
Result cuFuncGetAttribute(int *value, int attribute, void *function) { return *value = 1024, SUCCESS; }
Result cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads_x, unsigned threads_y, unsigned threads_z,
                      unsigned shared, void *stream, void **arguments, void **more) {
    return launches++, SUCCESS;
}
Result cuLaunchKernelEx(void *how, void *function, void **arguments, void **more) { return launches++, SUCCESS; }
DONE(cuTensorMapEncodeTiled, void *map)
DONE(cuTensorMapEncodeIm2col, void *map)

/* A graph of nothing. */
DONE(cuStreamBeginCapture_v2, void *stream, int mode)
Result cuStreamEndCapture(void *stream, void **graph) { return handle(graph); }
Result cuGraphGetNodes(void *graph, void **nodes, size_t *count) { return *count = 0, SUCCESS; }
DONE(cuGraphNodeGetType, void *node, int *type)
MADE_BY(cuGraphInstantiateWithFlags, void *graph, unsigned long long flags)
DONE(cuGraphUpload, void *graph, void *stream)
DONE(cuGraphLaunch, void *graph, void *stream)
DONE(cuGraphExecDestroy, void *graph)
DONE(cuGraphDestroy, void *graph)

Result cuGetErrorName(Result result, const char **name) { return *name = "NO_CARD", SUCCESS; }
Result cuGetErrorString(Result result, const char **text) { return *text = "there is no card", SUCCESS; }
