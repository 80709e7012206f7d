// The kernels that flash-attn's flash_api.cpp launches. Here they do nothing, as the virtual GPU computes nothing; everything around
// them, and every tensor that they are given, is flash_api.cpp's own.
#include <torch/python.h>

#include <cutlass/numeric_types.h>

#include "namespace_config.h"
#include "flash.h"

namespace FLASH_NAMESPACE {

template <typename T, int D, bool Causal> void run_mha_fwd_(Flash_fwd_params &, cudaStream_t) {}
template <typename T, int D, bool Causal> void run_mha_fwd_splitkv_dispatch(Flash_fwd_params &, cudaStream_t) {}
template <typename T, int D, bool Causal> void run_mha_bwd_(Flash_bwd_params &, cudaStream_t) {}

#define KERNELS(T, D, CAUSAL)                                                                   \
    template void run_mha_fwd_<T, D, CAUSAL>(Flash_fwd_params &, cudaStream_t);                 \
    template void run_mha_fwd_splitkv_dispatch<T, D, CAUSAL>(Flash_fwd_params &, cudaStream_t); \
    template void run_mha_bwd_<T, D, CAUSAL>(Flash_bwd_params &, cudaStream_t);
#define BOTH(T, D) KERNELS(T, D, true) KERNELS(T, D, false)
#define HEADS(T) BOTH(T, 32) BOTH(T, 64) BOTH(T, 96) BOTH(T, 128) BOTH(T, 192) BOTH(T, 256)
HEADS(cutlass::half_t)
HEADS(cutlass::bfloat16_t)

}  // namespace FLASH_NAMESPACE
