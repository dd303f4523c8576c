//! Which kernel computes a product: one table for all devices.
//!
//! [`Plan::choose`] is a plain function of the product and of what the device can do, so it is tested without the device.
//! `cargo run -p lora-4bit --example plans` prints the table of the machine it runs on.

use burn::tensor::DType;

use super::operand::Major;
use super::tile::{self, Tile};
use crate::compute_dtype::ComputeDtype;
use crate::nf4::BLOCK_SIZE;

/// What is computed with a weight `[n, k]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `x · wᵀ`: `[rows, k]` → `[rows, n]`.
    Forward,
    /// `dy · w`: `[rows, n]` → `[rows, k]`.
    Transposed,
    /// `silu(x · gateᵀ) · (x · upᵀ)` with two weights of the same shape: `[rows, k]` → `[rows, n]`.
    SwiGlu,
}

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// One value after the other, in f32, bf16 or f16.
    Dense {
        /// Type of a value.
        dtype: DType,
        /// Values from one row to the next, if each row is contiguous.
        row_stride: Option<usize>,
    },
    /// 4 bits a value.
    Nf4,
}

impl WeightFormat {
    /// A dense weight whose rows follow each other.
    pub fn dense(dtype: DType, k: usize) -> Self {
        let row_stride = Some(k);
        Self::Dense { dtype, row_stride }
    }
}

/// The sizes and types of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Product {
    /// What is computed.
    pub operation: Operation,
    /// Rows of the input.
    pub rows: usize,
    /// Rows of the weight.
    pub n: usize,
    /// Columns of the weight.
    pub k: usize,
    /// How the weight is stored.
    pub weight: WeightFormat,
    /// Type of the input.
    pub input: DType,
    /// Type in which operands are multiplied.
    pub compute: ComputeDtype,
}

/// What a device can do, as far as the choice of a kernel depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Features {
    /// The plain CPU backend.
    Cpu(CpuFeatures),
    /// A CubeCL backend.
    Gpu(GpuFeatures),
}

/// What a CPU can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures {
    /// Products of NF4 in integers (AVX2, AVX-512-VNNI, AMX).
    pub integers: bool,
    /// Products of pairs of bf16 (AVX-512-BF16, AMX).
    pub bf16_pairs: bool,
    /// Tiles of bf16 (AMX).
    pub amx: bool,
}

/// What a GPU can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuFeatures {
    /// Units of a plane (a warp) can add up their values.
    pub plane_operations: bool,
    /// Units of a plane, at least and at most.
    pub plane_sizes: [usize; 2],
    /// Tensor cores multiply bf16, with `ldmatrix` and asynchronous copies.
    pub bf16_tensor_cores: bool,
    /// The same for f16.
    pub f16_tensor_cores: bool,
    /// Bytes of shared memory of a cube (a block).
    pub shared_memory: usize,
    /// Buffers of a launch.
    pub max_bindings: usize,
}

/// A kernel, or the operations that replace one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// CPU: operands in f32.
    CpuFloats,
    /// CPU: NF4 levels and blocks of the input as integers of 16 bits.
    CpuIntegers,
    /// CPU: both operands rounded to bf16, multiplied in pairs.
    CpuBf16Pairs,
    /// CPU: a bf16 weight in AMX tiles, each value of the input as the exact sum of three bf16.
    CpuAmxExact,
    /// CPU: a bf16 weight in AMX tiles, the input rounded to bf16.
    CpuAmxRounded,
    /// GPU: each plane adds up some rows of a dense weight.
    GpuMatVec,
    /// GPU: tensor cores multiply tiles of a dense weight.
    GpuMatMul,
    /// GPU: tensor cores multiply `dy` and a dense weight, whose columns they read.
    GpuGemm,
    /// GPU: each plane adds up some rows of an NF4 weight.
    GpuNf4MatVec,
    /// GPU: tensor cores multiply NF4 levels, rounded to bf16.
    GpuNf4MatMul,
    /// GPU: the NF4 weight is unpacked, then multiplied as a dense one.
    GpuDequantize,
    /// Burn's own matmul.
    Burn,
    /// SwiGLU only: two products, then the activation.
    Separate,
}

/// Below this many rows, plain sums read a dense weight as fast as tensor cores do.
const MIN_TENSOR_CORE_ROWS: usize = 3;
/// Below this many rows, rearranging the weight costs more than pairs of bf16 save.
const MIN_PAIR_ROWS: usize = 32;
/// Below this many rows, loops without tiles multiply as fast as the weight is read.
const MIN_AMX_ROWS: usize = 5;
/// Columns of an AMX tile of bf16.
const AMX_COLUMNS: usize = 32;
/// Rows of the input that the NF4 kernel without tensor cores takes; more rows are worth unpacking the weight.
pub(super) const MAX_NF4_MAT_VEC_ROWS: usize = 4;
/// The same for the NF4 kernel with tensor cores.
pub(super) const MAX_NF4_MAT_MUL_ROWS: usize = 32;
/// Rows that the NF4 kernel with tensor cores normalises.
const MAX_NF4_MAT_MUL_NORM_ROWS: usize = 8;
/// Buffers of an NF4 kernel: five for each of three weights, nine more, and one for what CubeCL adds.
const MIN_NF4_BINDINGS: usize = 25;
/// Units of a cube in the products with few rows.
pub(super) const UNITS: usize = 128;
/// NF4 codes of a load.
pub(super) const CODES: usize = 16;
/// Shared memory of the NF4 kernel without tensor cores, the input apart.
pub(super) const NF4_MAT_VEC_SHARED: usize = 7 << 10;
/// Shared memory of the NF4 kernel with tensor cores: tables, the sums of a plane, a block of all rows of the input.
const MIN_NF4_MAT_MUL_SHARED: usize = 48 << 10;
/// Shared memory of the kernel for operands that are read either way: three steps of 128 rows of each operand.
const GEMM_SHARED: usize = 3 * (128 + 128) * tile::INNER * 2;

impl Plan {
    /// The kernel for a product on a device.
    pub fn choose(product: &Product, device: &Features) -> Self {
        match device {
            Features::Cpu(cpu) => Self::on_cpu(product, cpu),
            Features::Gpu(gpu) => Self::on_gpu(product, gpu),
        }
    }

    fn on_cpu(product: &Product, cpu: &CpuFeatures) -> Self {
        use ComputeDtype::{Bf16, Bits16};
        let Product { rows, k, .. } = *product;
        let dense = match product.weight {
            WeightFormat::Dense { dtype, .. } => Some(dtype),
            WeightFormat::Nf4 => None,
        };
        let fits_tiles = cpu.amx && rows >= MIN_AMX_ROWS && k.is_multiple_of(AMX_COLUMNS);
        let fits_integers = cpu.integers && dense.is_none() && k.is_multiple_of(BLOCK_SIZE);
        match (product.operation, product.compute) {
            (Operation::Forward | Operation::SwiGlu, Bits16)
                if fits_tiles && dense == Some(DType::BF16) =>
            {
                Self::CpuAmxExact
            }
            (Operation::Forward | Operation::SwiGlu, Bf16)
                if fits_tiles && dense == Some(DType::BF16) =>
            {
                Self::CpuAmxRounded
            }
            (Operation::SwiGlu, _) => Self::Separate,
            (_, Bf16) if cpu.bf16_pairs && rows >= MIN_PAIR_ROWS => Self::CpuBf16Pairs,
            (Operation::Forward, Bits16) if fits_integers => Self::CpuIntegers,
            _ => Self::CpuFloats,
        }
    }

    fn on_gpu(product: &Product, gpu: &GpuFeatures) -> Self {
        match (product.operation, product.weight) {
            (Operation::Transposed, WeightFormat::Dense { dtype, .. }) => {
                let Product { rows, n, k, .. } = *product;
                let is_rounded = product.compute == ComputeDtype::Bf16;
                match is_rounded && fits_gemm(gpu, dtype, [rows, k], [n, 0], Major::Inner) {
                    true => Self::GpuGemm,
                    false => Self::Burn,
                }
            }
            (Operation::Transposed, WeightFormat::Nf4) => Self::GpuDequantize,
            (operation, weight) => {
                let plan = match weight {
                    WeightFormat::Nf4 => Self::nf4_on_gpu(product, gpu),
                    WeightFormat::Dense { dtype, row_stride } => {
                        Self::dense_on_gpu(product, dtype, row_stride, gpu)
                    }
                };
                match operation == Operation::SwiGlu && !plan.takes_several_weights() {
                    true => Self::Separate,
                    false => plan,
                }
            }
        }
    }

    fn nf4_on_gpu(product: &Product, gpu: &GpuFeatures) -> Self {
        let Product { rows, n, k, .. } = *product;
        let [min_plane, max_plane] = gpu.plane_sizes;
        let shared = NF4_MAT_VEC_SHARED + 4 * CODES * MAX_NF4_MAT_VEC_ROWS * max_plane;
        let fits = n > 0
            && k > 0
            && k.is_multiple_of(BLOCK_SIZE)
            && gpu.max_bindings >= MIN_NF4_BINDINGS
            && min_plane == max_plane
            && (BLOCK_SIZE / CODES..=UNITS).contains(&max_plane)
            && gpu.shared_memory >= shared;
        let fits_tensor_cores = fits
            && product.compute == ComputeDtype::Bf16
            && rows <= MAX_NF4_MAT_MUL_ROWS
            && gpu.bf16_tensor_cores
            && matches!(product.input, DType::F32 | DType::BF16)
            && gpu.shared_memory >= MIN_NF4_MAT_MUL_SHARED;
        if fits_tensor_cores {
            Self::GpuNf4MatMul
        } else if fits && gpu.plane_operations && rows <= MAX_NF4_MAT_VEC_ROWS {
            Self::GpuNf4MatVec
        } else {
            Self::GpuDequantize
        }
    }

    fn dense_on_gpu(
        product: &Product,
        dtype: DType,
        row_stride: Option<usize>,
        gpu: &GpuFeatures,
    ) -> Self {
        let is_rounded = product.compute == ComputeDtype::Bf16 && dtype != DType::F32;
        if is_rounded && product.rows >= MIN_TENSOR_CORE_ROWS {
            let reads_rows = row_stride.is_some_and(|stride| stride.is_multiple_of(tile::VECTOR));
            return match reads_rows && fits_mat_mul(product, dtype, gpu) {
                true => Self::GpuMatMul,
                false => Self::Burn,
            };
        }
        // Burn's matmul rounds f32 to the 10 bits of tensor cores: the kernel for few rows keeps all 24, so it takes any number.
        let reads_rows = row_stride.is_some()
            && product.input == DType::F32
            && matches!(dtype, DType::F32 | DType::BF16 | DType::F16);
        match gpu.plane_operations && reads_rows {
            true => Self::GpuMatVec,
            false => Self::Burn,
        }
    }

    /// The type in which the kernel reads its input. An input of another type is converted first.
    pub fn input_dtype(self, product: &Product, device: &Features) -> DType {
        match (self, product.weight, device) {
            (Self::GpuMatMul, WeightFormat::Dense { dtype, .. }, _) => dtype,
            (Self::GpuNf4MatMul, ..) => DType::BF16,
            (Self::GpuDequantize, _, Features::Gpu(gpu))
                if product.compute == ComputeDtype::Bf16
                    && fits_mat_mul(product, DType::BF16, gpu) =>
            {
                DType::BF16
            }
            _ => DType::F32,
        }
    }

    /// Whether a launch of this kernel also normalises `rows` rows of its input. With more rows a norm of its own costs less.
    pub fn fuses_norm(self, operation: Operation, rows: usize) -> bool {
        let most = match (self, operation) {
            // Twice as many cubes would compute the norm.
            (Self::GpuMatVec, Operation::SwiGlu) => 0,
            (Self::GpuMatVec, _) => 1,
            (Self::GpuNf4MatVec, _) => MAX_NF4_MAT_VEC_ROWS,
            (Self::GpuNf4MatMul, _) => MAX_NF4_MAT_MUL_NORM_ROWS,
            _ => 0,
        };
        rows <= most
    }

    /// Whether one launch of this kernel multiplies several weights with the same input.
    pub fn takes_several_weights(self) -> bool {
        matches!(
            self,
            Self::GpuMatVec | Self::GpuMatMul | Self::GpuNf4MatVec | Self::GpuNf4MatMul
        )
    }
}

/// Whether the tensor-core kernel multiplies the product, as far as sizes and the device are concerned.
fn fits_mat_mul(product: &Product, dtype: DType, gpu: &GpuFeatures) -> bool {
    let has_tensor_cores = match dtype {
        DType::BF16 => gpu.bf16_tensor_cores,
        DType::F16 => gpu.f16_tensor_cores,
        _ => false,
    };
    has_tensor_cores
        && (product.input == DType::F32 || product.input == dtype)
        && Tile::of(product.rows).num_bytes() <= gpu.shared_memory
        && product.k.is_multiple_of(tile::INNER)
        && product.n.is_multiple_of(2)
}

/// Whether the kernel for operands that are read either way takes them: of type `dtype`, to a result `[m, n]` over two inner dimensions.
pub(super) fn fits_gemm(
    gpu: &GpuFeatures,
    dtype: DType,
    [m, n]: [usize; 2],
    inner: [usize; 2],
    major_a: Major,
) -> bool {
    dtype == DType::BF16
        && gpu.bf16_tensor_cores
        && n.is_multiple_of(tile::VECTOR)
        && (major_a == Major::Inner || m.is_multiple_of(tile::VECTOR))
        && inner.iter().all(|inner| inner.is_multiple_of(tile::INNER))
        && gpu.shared_memory >= GEMM_SHARED
}

#[cfg(test)]
mod tests {
    use super::*;

    const AMX: Features = Features::Cpu(CpuFeatures {
        integers: true,
        bf16_pairs: true,
        amx: true,
    });
    const AVX2: Features = Features::Cpu(CpuFeatures {
        integers: true,
        bf16_pairs: false,
        amx: false,
    });
    const HOPPER: Features = Features::Gpu(GpuFeatures {
        plane_operations: true,
        plane_sizes: [32, 32],
        bf16_tensor_cores: true,
        f16_tensor_cores: true,
        shared_memory: 227 << 10,
        max_bindings: 1024,
    });
    /// Without tensor cores, and with planes of a size that differs.
    const WEBGPU: Features = Features::Gpu(GpuFeatures {
        plane_operations: true,
        plane_sizes: [8, 8],
        bf16_tensor_cores: false,
        f16_tensor_cores: false,
        shared_memory: 32 << 10,
        max_bindings: 31,
    });

    fn plan(
        device: &Features,
        operation: Operation,
        weight: Option<DType>,
        rows: usize,
        compute: ComputeDtype,
    ) -> Plan {
        let (n, k) = (4864, 896);
        let weight = weight.map_or(WeightFormat::Nf4, |dtype| WeightFormat::dense(dtype, k));
        let input = DType::F32;
        let product = Product {
            operation,
            rows,
            n,
            k,
            weight,
            input,
            compute,
        };
        Plan::choose(&product, device)
    }

    #[test]
    fn a_cpu_with_amx_has_a_kernel_for_each_number_of_rows() {
        use ComputeDtype::{Bf16, Bits16, F32};
        use Operation::{Forward, SwiGlu, Transposed};
        let bf16 = Some(DType::BF16);
        for (operation, weight, rows, compute, expected) in [
            (Forward, bf16, 512, F32, Plan::CpuFloats),
            (Forward, bf16, 4, Bits16, Plan::CpuFloats),
            (Forward, bf16, 5, Bits16, Plan::CpuAmxExact),
            (Forward, bf16, 5, Bf16, Plan::CpuAmxRounded),
            (Forward, Some(DType::F16), 31, Bf16, Plan::CpuFloats),
            (Forward, Some(DType::F16), 32, Bf16, Plan::CpuBf16Pairs),
            (Forward, None, 1, Bits16, Plan::CpuIntegers),
            (Forward, None, 512, Bits16, Plan::CpuIntegers),
            (Forward, None, 32, Bf16, Plan::CpuBf16Pairs),
            (Transposed, bf16, 512, Bits16, Plan::CpuFloats),
            (Transposed, None, 32, Bf16, Plan::CpuBf16Pairs),
            (SwiGlu, bf16, 4, Bits16, Plan::Separate),
            (SwiGlu, bf16, 5, Bits16, Plan::CpuAmxExact),
            (SwiGlu, None, 512, Bits16, Plan::Separate),
        ] {
            let found = plan(&AMX, operation, weight, rows, compute);
            assert_eq!(
                found, expected,
                "{operation:?}, {weight:?}, {rows} rows, {compute:?}"
            );
        }
    }

    #[test]
    fn a_cpu_without_bf16_rounds_nothing() {
        for rows in [1, 5, 32, 512] {
            for weight in [Some(DType::BF16), Some(DType::F32), None] {
                let found = plan(&AVX2, Operation::Forward, weight, rows, ComputeDtype::Bf16);
                assert_eq!(found, Plan::CpuFloats);
            }
        }
    }

    #[test]
    fn a_gpu_has_a_kernel_for_each_number_of_rows() {
        use ComputeDtype::{Bf16, F32};
        use Operation::{Forward, SwiGlu, Transposed};
        let bf16 = Some(DType::BF16);
        for (device, operation, weight, rows, compute, expected) in [
            (HOPPER, Forward, bf16, 2, Bf16, Plan::GpuMatVec),
            (HOPPER, Forward, bf16, 3, Bf16, Plan::GpuMatMul),
            (HOPPER, Forward, bf16, 512, F32, Plan::GpuMatVec),
            (
                HOPPER,
                Forward,
                Some(DType::F32),
                512,
                Bf16,
                Plan::GpuMatVec,
            ),
            (HOPPER, Forward, None, 1, Bf16, Plan::GpuNf4MatMul),
            (HOPPER, Forward, None, 32, Bf16, Plan::GpuNf4MatMul),
            (HOPPER, Forward, None, 33, Bf16, Plan::GpuDequantize),
            (HOPPER, Forward, None, 4, F32, Plan::GpuNf4MatVec),
            (HOPPER, Forward, None, 5, F32, Plan::GpuDequantize),
            (HOPPER, Transposed, bf16, 512, Bf16, Plan::GpuGemm),
            (HOPPER, Transposed, bf16, 512, F32, Plan::Burn),
            (HOPPER, Transposed, Some(DType::F16), 512, Bf16, Plan::Burn),
            (WEBGPU, Transposed, bf16, 512, Bf16, Plan::Burn),
            (HOPPER, Transposed, None, 1, Bf16, Plan::GpuDequantize),
            (WEBGPU, Forward, bf16, 1, F32, Plan::GpuMatVec),
            (WEBGPU, Forward, bf16, 3, Bf16, Plan::Burn),
            (WEBGPU, Forward, None, 4, Bf16, Plan::GpuNf4MatVec),
            (HOPPER, SwiGlu, bf16, 3, Bf16, Plan::GpuMatMul),
            (HOPPER, SwiGlu, None, 33, Bf16, Plan::Separate),
            (WEBGPU, SwiGlu, bf16, 3, Bf16, Plan::Separate),
        ] {
            let found = plan(&device, operation, weight, rows, compute);
            assert_eq!(
                found, expected,
                "{device:?}, {operation:?}, {weight:?}, {rows} rows, {compute:?}"
            );
        }
    }

    #[test]
    fn weights_that_a_kernel_cannot_read_go_to_burn() {
        let product = |n, k, row_stride| Product {
            operation: Operation::Forward,
            rows: 64,
            n,
            k,
            weight: WeightFormat::Dense {
                dtype: DType::BF16,
                row_stride,
            },
            input: DType::F32,
            compute: ComputeDtype::Bf16,
        };
        let choose = |product| Plan::choose(&product, &HOPPER);
        assert_eq!(choose(product(128, 128, Some(128))), Plan::GpuMatMul);
        for product in [
            product(127, 128, Some(128)),
            product(128, 96, Some(96)),
            product(128, 128, Some(132)),
            product(128, 128, None),
        ] {
            assert_eq!(choose(product), Plan::Burn, "{product:?}");
        }
    }

    #[test]
    fn only_kernels_for_few_rows_normalise_their_input() {
        let forward = Operation::Forward;
        assert!(Plan::GpuMatVec.fuses_norm(forward, 1));
        assert!(!Plan::GpuMatVec.fuses_norm(forward, 2));
        assert!(!Plan::GpuMatVec.fuses_norm(Operation::SwiGlu, 1));
        assert!(Plan::GpuNf4MatMul.fuses_norm(Operation::SwiGlu, 8));
        assert!(!Plan::GpuNf4MatMul.fuses_norm(forward, 9));
        assert!(!Plan::GpuMatMul.fuses_norm(forward, 1));
    }
}
