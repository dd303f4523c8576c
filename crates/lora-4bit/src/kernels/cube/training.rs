//! Kernels of a training step between the products: bf16 or f32 in memory, f32 in registers.

mod kernels;

use burn::backend::Cube;
use burn::backend::cubecl::dtype_to_elem_type;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::copy::write_rows;
use super::gemm::shape::Gate;
use super::launch::{UNITS, cubes, empty, vector_of};
use super::{gemm, nf4};
use crate::kernels::device_ops::TrainingOps;
use crate::kernels::operand::{GemmOperand, Major, Maybe, Part, PartOperand, WeightOperand};

impl TrainingOps for Cube {
    fn gemm(operand: GemmOperand<Self>) -> FloatTensor<Self> {
        let operand_of = |first: CubeTensor, second: Maybe<Self>, major| gemm::OperandTensors {
            first: into_contiguous(first),
            second: second.into_option().map(into_contiguous),
            major,
        };
        let [major_a, major_b] = operand.majors;
        let a = operand_of(operand.a, operand.second_a, major_a);
        let b = operand_of(operand.b, operand.second_b, major_b);
        let sizes = |tensors: &gemm::OperandTensors| {
            let [rows, columns]: [usize; 2] = tensors.first.meta.shape().dims();
            let second = tensors
                .second
                .as_ref()
                .map_or([0, 0], |s| s.meta.shape().dims());
            match tensors.major {
                Major::Inner => (rows, [columns, second[1]]),
                Major::Outer => (columns, [rows, second[0]]),
            }
        };
        let ((m, inner), (n, _)) = (sizes(&a), sizes(&b));
        let (gate, n) = match operand.is_gated {
            true => (Gate::Stacked, n / 2),
            false => (Gate::None, n),
        };
        let product = gemm::Product {
            a,
            b,
            bias: operand.bias.into_option().map(into_contiguous),
            residual: operand.residual.into_option().map(into_contiguous),
            gate,
            shape: [m, n],
            inner,
            dtype: operand.dtype,
        };
        product.run()
    }

    fn write_weight(
        to: FloatTensor<Self>,
        weight: WeightOperand<Self>,
        at: usize,
    ) -> FloatTensor<Self> {
        match weight {
            WeightOperand::Nf4 { weight } => nf4::dequantize_into(weight, to, at),
            WeightOperand::Dense(weight) => write_rows(to, into_contiguous(weight), at),
        }
    }

    fn stack_adapters(
        first: PartOperand<Self>,
        second: PartOperand<Self>,
        third: PartOperand<Self>,
        [k, n, ranks]: [usize; 3],
        dtype: DType,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let like = first.a.clone();
        let (a, b) = (
            empty(&like, [ranks, k], dtype),
            empty(&like, [n, ranks], dtype),
        );
        let argument = |operand: PartOperand<Self>| {
            let Part {
                row,
                rows,
                rank,
                ranks,
                scaling,
                ..
            } = operand.part;
            kernels::AdapterLaunch::new(
                into_contiguous(operand.a).into_buffer_arg(),
                into_contiguous(operand.b_t).into_buffer_arg(),
                row,
                rows,
                rank,
                ranks,
                scaling,
            )
        };
        let len = ranks * (k + n);
        // SAFETY: units stay below the number of values; places of parts lie in their tensors.
        unsafe {
            kernels::stack_kernel::launch_unchecked(
                &like.client.clone(),
                cubes(len),
                CubeDim::new_1d(UNITS as u32),
                argument(first),
                argument(second),
                argument(third),
                a.clone().into_buffer_arg(),
                b.clone().into_buffer_arg(),
                len,
                k,
                ranks,
                dtype_to_elem_type(dtype),
            );
        }
        (a, b)
    }

    fn adapter_gradients(
        da: FloatTensor<Self>,
        db: FloatTensor<Self>,
        part: Part,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [k, _] = da.meta.shape().dims();
        let (a, b_t) = (
            empty(&da, [part.ranks, k], DType::F32),
            empty(&da, [part.ranks, part.rows], DType::F32),
        );
        take_gradients([da, db], [&a, &b_t], part, false);
        (a, b_t)
    }

    fn add_adapter_gradients(
        da: FloatTensor<Self>,
        db: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b_t: FloatTensor<Self>,
        part: Part,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        take_gradients([da, db], [&a, &b_t], part, true);
        (a, b_t)
    }

    fn training_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let (x, weight) = (into_contiguous(x), into_contiguous(weight));
        let [rows, dim] = x.meta.shape().dims();
        let y = empty(&x, [rows, dim], x.dtype);
        let dtype = dtype_to_elem_type(x.dtype);
        if rows > 0 {
            // SAFETY: a cube for each row; units stay below `dim`.
            unsafe {
                kernels::norm_kernel::launch_unchecked(
                    &x.client.clone(),
                    cubes(rows * UNITS),
                    CubeDim::new_1d(UNITS as u32),
                    vector_of(dim),
                    x.into_buffer_arg(),
                    weight.into_buffer_arg(),
                    y.clone().into_buffer_arg(),
                    rows,
                    dim as f32,
                    eps as f32,
                    dim / vector_of(dim),
                    dtype,
                );
            }
        }
        y
    }

    fn training_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        dy: FloatTensor<Self>,
        residual: Maybe<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let [x, weight, dy] = [x, weight, dy].map(into_contiguous);
        let [rows, dim] = x.meta.shape().dims();
        let dx = empty(&x, [rows, dim], x.dtype);
        let dtype = dtype_to_elem_type(x.dtype);
        let residual = residual.into_option().map(into_contiguous);
        let has_residual = residual.is_some();
        let residual = residual.unwrap_or_else(|| x.clone());
        if rows > 0 {
            // SAFETY: a cube for each row; units stay below `dim`.
            unsafe {
                kernels::norm_backward_kernel::launch_unchecked(
                    &x.client.clone(),
                    cubes(rows * UNITS),
                    CubeDim::new_1d(UNITS as u32),
                    vector_of(dim),
                    x.into_buffer_arg(),
                    weight.into_buffer_arg(),
                    dy.into_buffer_arg(),
                    residual.into_buffer_arg(),
                    dx.clone().into_buffer_arg(),
                    rows,
                    dim as f32,
                    eps as f32,
                    dim / vector_of(dim),
                    has_residual,
                    dtype,
                );
            }
        }
        dx
    }

    fn training_dropout(
        x: FloatTensor<Self>,
        [first, second]: [u32; 2],
        threshold: u32,
        keep: f32,
    ) -> FloatTensor<Self> {
        let x = into_contiguous(x);
        let [rows, columns] = x.meta.shape().dims();
        let y = empty(&x, [rows, columns], x.dtype);
        let dtype = dtype_to_elem_type(x.dtype);
        let len = rows * columns;
        if len > 0 {
            // SAFETY: units stay below the number of values.
            unsafe {
                kernels::dropout_kernel::launch_unchecked(
                    &x.client.clone(),
                    cubes(len),
                    CubeDim::new_1d(UNITS as u32),
                    x.into_buffer_arg(),
                    y.clone().into_buffer_arg(),
                    len,
                    first,
                    second,
                    threshold,
                    keep,
                    dtype,
                );
            }
        }
        y
    }

    fn training_rescale(
        x: FloatTensor<Self>,
        factor: FloatTensor<Self>,
        offset: Maybe<Self>,
        residual: Maybe<Self>,
    ) -> FloatTensor<Self> {
        let [x, factor] = [x, factor].map(into_contiguous);
        let [rows, columns] = x.meta.shape().dims();
        let y = empty(&x, [rows, columns], x.dtype);
        let dtype = dtype_to_elem_type(x.dtype);
        let [offset, residual] = [offset, residual].map(|maybe| {
            let tensor = maybe.into_option().map(into_contiguous);
            (tensor.is_some(), tensor)
        });
        let vectors = columns / vector_of(columns);
        if rows * columns > 0 {
            // SAFETY: units stay below the number of vectors.
            unsafe {
                kernels::rescale_kernel::launch_unchecked(
                    &x.client.clone(),
                    cubes(rows * vectors),
                    CubeDim::new_1d(UNITS as u32),
                    vector_of(columns),
                    x.clone().into_buffer_arg(),
                    factor.clone().into_buffer_arg(),
                    offset.1.unwrap_or(factor).into_buffer_arg(),
                    residual.1.unwrap_or(x).into_buffer_arg(),
                    y.clone().into_buffer_arg(),
                    rows * vectors,
                    vectors,
                    [offset.0, residual.0],
                    dtype,
                );
            }
        }
        y
    }

    fn training_swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
        let gate_up = into_contiguous(gate_up);
        let [rows, both] = gate_up.meta.shape().dims();
        let width = both / 2;
        let y = empty(&gate_up, [rows, width], gate_up.dtype);
        let dtype = dtype_to_elem_type(gate_up.dtype);
        let vectors = width / vector_of(width);
        if rows * width > 0 {
            // SAFETY: units stay below the number of vectors.
            unsafe {
                kernels::swiglu_kernel::launch_unchecked(
                    &gate_up.client.clone(),
                    cubes(rows * vectors),
                    CubeDim::new_1d(UNITS as u32),
                    vector_of(width),
                    gate_up.into_buffer_arg(),
                    y.clone().into_buffer_arg(),
                    rows * vectors,
                    vectors,
                    dtype,
                );
            }
        }
        y
    }

    fn training_swiglu_backward(
        gate_up: FloatTensor<Self>,
        dy: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (gate_up, dy) = (into_contiguous(gate_up), into_contiguous(dy));
        let [rows, width] = dy.meta.shape().dims();
        let dtype = dtype_to_elem_type(dy.dtype);
        let vectors = width / vector_of(width);
        if rows * width > 0 {
            // SAFETY: units stay below the number of vectors; each reads what it overwrites first.
            unsafe {
                kernels::swiglu_backward_kernel::launch_unchecked(
                    &dy.client.clone(),
                    cubes(rows * vectors),
                    CubeDim::new_1d(UNITS as u32),
                    vector_of(width),
                    gate_up.clone().into_buffer_arg(),
                    dy.clone().into_buffer_arg(),
                    rows * vectors,
                    vectors,
                    dtype,
                );
            }
        }
        (gate_up, dy)
    }
}

/// Writes the gradients of a part of a group to `a` and `b_t`, or adds them.
fn take_gradients([da, db]: [CubeTensor; 2], [a, b_t]: [&CubeTensor; 2], part: Part, adds: bool) {
    // What is written to a copy would be lost.
    assert!(
        a.is_contiguous() && b_t.is_contiguous(),
        "gradients without gaps"
    );
    let (da, db) = (into_contiguous(da), into_contiguous(db));
    // Of dropout `da` comes without the columns that fill the ranks up.
    let [k, da_columns] = da.meta.shape().dims();
    let [_, db_columns] = db.meta.shape().dims::<2>();
    let len = part.ranks * (k + part.rows);
    // SAFETY: units stay below the number of values; the part lies in both tensors.
    unsafe {
        kernels::gradients_kernel::launch_unchecked(
            &a.client.clone(),
            cubes(len),
            CubeDim::new_1d(UNITS as u32),
            da.into_buffer_arg(),
            db.into_buffer_arg(),
            a.clone().into_buffer_arg(),
            b_t.clone().into_buffer_arg(),
            len,
            k,
            part.rows,
            part.row,
            part.rank,
            part.ranks,
            da_columns,
            db_columns,
            part.scaling,
            adds,
        );
    }
}
