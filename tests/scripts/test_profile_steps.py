"""The profile of steps: classes of kernels, times from made-up timelines, tables."""

import re
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from scripts.profile_steps import tables
from scripts.profile_steps.classes import (
    ATTENTION,
    CLASSES,
    COPIES,
    ELEMENTWISE,
    GEMM,
    MASKS,
    OTHER,
    SUMS,
    classify,
)
from scripts.profile_steps.times import Kernel, StepTimes, Window, step_times, windows

NAMES = {
    ATTENTION: (
        "hopper_block_sparse_kernel",
        "block_sparse_kernel",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0",
        "void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, "
        "cutlass::bfloat16_t>, false>(pytorch_flash::Flash_fwd_params)",
        "void pytorch_flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128>>(pytorch_flash::Flash_fwd_params)",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass::bfloat16_t, "
        "cutlass::arch::Sm80, true, 64, 128, 128, true, true>::Params)",
        "kernel_cutlass_kernel_flash_attncuteflash_fwd_sm90FlashAttentionForwardSm90_object_at__tensorptrbf16gmem_0",
        "void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<2>>>>",
        "triton_tem_fused_flex_attention_0",
    ),
    SUMS: ("hopper_block_sums_kernel", "block_sums_kernel"),
    MASKS: (
        "weigh_rows_kernel",
        "pack_rows_kernel",
        "flag_lists_kernel",
        "void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<at_cuda_detail::cub::Policy<int, long>>",
        "void at::native::bitonicSortKVInPlace<-2, -1, 16, 16, float, long, at::native::GTOp<float, true>>(...)",
        "void at::native::(anonymous namespace)::fill_index_and_segment_kernel(int2*, int, IntDivider)",
    ),
    GEMM: (
        "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_bias_TNT",
        "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNN",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k_off_kernel",
        "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn",
        "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>(...)",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, __nv_bfloat16, true>(...)",
        "void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float, 128, 16, 4, 4, false>",
        "void gemvx::kernel<int, int, __nv_bfloat16, float, false>(cublasGemvParamsEx<int>)",
        "sm80_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x32_stage3_kernel_cudnn",
        "triton_tem_fused_addmm_3",
        "triton_tem_fused__to_copy_mm_t_1",
    ),
    ELEMENTWISE: (
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>(int, ...)",
        "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::BinaryFunctor<"
        "c10::complex<float>, c10::complex<float>, c10::complex<float>, at::native::binary_internal::MulFunctor>>>",
        "void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl(at::TensorIteratorBase&, "
        "at::native::GeluType)::{lambda()#1}>(int, ...)",
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, false>(int, ...)",
        "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float, float>>>(...)",
        "triton_poi_fused_add_mul_silu_4",
        "triton_poi_fused_cat_mul_7",
        "triton_red_fused__to_copy_add_mul_native_layer_norm_2",
        "triton_per_fused_mean_pow_rsqrt_0",
        "quantise_rows_kernel",
    ),
    COPIES: (
        "Memcpy DtoD (Device -> Device)",
        "Memcpy HtoD (Pageable -> Device)",
        "Memset (Device)",
        "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<"
        "at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}::operator()() const>>",
        "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>",
        "void at::native::vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda(...)>",
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy_vectorized<at::native::OpaqueType<2u>, 128, 1>",
        "void at::native::vectorized_elementwise_kernel<8, at::native::FillFunctor<c10::BFloat16>>(int, ...)",
        "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, false, true>(...)",
        "triton_poi_fused_cat_5",
        "triton_poi_fused__to_copy_clone_split_with_sizes_12",
    ),
    OTHER: (
        "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
        "void at::native::(anonymous namespace)::upsample_nearest3d_out_frame<float>(...)",
    ),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in names])
def test_kernels_are_told_by_their_names(kind: str, name: str) -> None:
    assert classify(name) == kind


def test_every_kernel_of_ours_has_a_class() -> None:
    folder = Path(__file__).resolve().parents[2] / "kernels" / "adaspa_kernels"
    names = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"hopper_block_sparse_kernel", "weigh_rows_kernel"} <= names
    assert {name for name in names if classify(name) == OTHER} == set()


# --- times


def test_windows_lie_between_marks() -> None:
    kernels = [
        Kernel("before", 0, 5),
        Kernel("mark", 6, 7),
        Kernel("b", 20, 30),  # not in order: streams are listed one after the other
        Kernel("a", 10, 12),
        Kernel("mark", 40, 41),
        Kernel("mark", 50, 52),
        Kernel("after", 60, 61),
    ]
    first, second = windows(kernels, lambda name: name == "mark")
    assert first == Window(7, 40, [Kernel("a", 10, 12), Kernel("b", 20, 30)])
    assert second == Window(41, 50, [])
    assert windows(kernels[:2], lambda name: name == "mark") == []


def test_a_step_is_work_and_gaps() -> None:
    found = step_times(
        Window(
            1000,
            11_000,
            [
                Kernel("hopper_block_sparse_kernel", 2000, 5000),
                Kernel("nvjet_a", 5000, 6000),
                Kernel("hopper_block_sparse_kernel", 6500, 8500),
            ],
        )
    )
    assert found.span == 10
    assert found.work == dict.fromkeys(CLASSES, 0) | {ATTENTION: 5, GEMM: 1}
    assert found.gaps == pytest.approx(4)
    assert found.overlap == pytest.approx(0)
    assert found.launches == 3
    assert [(k.name, k.kind, k.launches, k.milliseconds) for k in found.kernels] == [
        ("hopper_block_sparse_kernel", ATTENTION, 2, 5),
        ("nvjet_a", GEMM, 1, 1),
    ]


def test_what_runs_at_once_fills_a_gap_once() -> None:
    found = step_times(
        Window(
            0,
            10_000,
            [
                Kernel("nvjet_a", 0, 6000),
                Kernel("nvjet_b", 1000, 2000),  # within another
                Kernel("Memcpy DtoD", 5000, 8000),  # over its end
                Kernel("Memset (Device)", 9000, 12_000),  # over the end of the step
            ],
        )
    )
    assert found.work[GEMM] == pytest.approx(7)
    assert found.work[COPIES] == pytest.approx(4)
    assert found.gaps == pytest.approx(1)
    assert found.overlap == pytest.approx(2)
    assert sum(found.work.values()) + found.gaps == pytest.approx(found.span + found.overlap)


# --- tables


FLASH, GEMM_KERNEL = "void at::native::flash_fwd_kernel<a|b>", f"nvjet_{'x' * 200}"


def step(*kernels: Kernel, span: float = 10_000) -> StepTimes:
    return step_times(Window(0, span, list(kernels)))


def test_the_table_has_milliseconds_and_shares() -> None:
    dense = step(Kernel(FLASH, 0, 6000), Kernel(GEMM_KERNEL, 6000, 8500))
    table = tables.work_table({"dense": dense, "sparse": step(Kernel(GEMM_KERNEL, 0, 1000), span=4000)})
    lines = table.splitlines()
    assert lines[:3] == [
        "| work, ms | dense | sparse |",
        "| --- | --- | --- |",
        "| attention | 6.0 (60.0%) | 0.0 (0.0%) |",
    ]
    assert "| GEMM | 2.5 (25.0%) | 1.0 (25.0%) |" in lines
    assert lines[-3:] == [
        "| gaps | 1.5 (15.0%) | 3.0 (75.0%) |",
        "| the step | 10.0 (100.0%) | 4.0 (100.0%) |",
        "| launches | 2 | 1 |",
    ]


def test_the_table_says_what_was_counted_twice() -> None:
    both = step(Kernel(FLASH, 0, 6000), Kernel(GEMM_KERNEL, 5000, 8000))
    assert "| counted twice: ran at once | -1.0 (-10.0%) |" in tables.work_table({"dense": both}).splitlines()


def test_the_kernel_table_shows_the_most_expensive_of_each_step() -> None:
    cheap = [Kernel(f"cheap_{number:02}", number, number + 1) for number in range(20)]
    steps = {
        "dense": step(*cheap, Kernel(FLASH, 100, 6100)),
        "sparse": step(Kernel(GEMM_KERNEL, 0, 3000), Kernel(FLASH, 3000, 3500), span=4000),
    }
    lines = tables.kernel_table(steps).splitlines()
    assert len(lines) == 2 + 2 + (tables.TOP - 1)
    name = GEMM_KERNEL[: tables._NAME_LENGTH - 1] + "…"
    assert lines[2] == f"| `{name}` | GEMM |  | 3.00 |"
    assert lines[3] == "| `flash_fwd_kernel<a/b>` | attention | 6.00 | 0.50 |"
    assert lines[4] == "| `cheap_00` | other | 0.00 |  |"
