//! What is left when a device fails.

use burn::tensor::{DType, Tensor};
use lora_4bit::{AdapterSelection, ComputeDtype};

use crate::nf4::nf4_layer;
use crate::{gpu, layer, random, to};

/// A product for which there is no room doesn't take its layer's weights with it: they multiply again as before.
#[test]
fn a_failed_product_leaves_its_layer() {
    let gpu = gpu();
    for compute in [ComputeDtype::F32, ComputeDtype::Bf16] {
        let dtype = match compute {
            ComputeDtype::Bf16 => DType::BF16,
            _ => DType::F32,
        };
        if !gpu.supports_dtype(dtype) {
            continue;
        }
        let (m, n, k) = (32, 128, 1536);
        let [_, mut dense] = layer([n, k], true, dtype, &gpu);
        let [_, mut four_bits] = nf4_layer([n, k], true, true, compute, &gpu);
        for layer in [&mut dense, &mut four_bits] {
            layer.compute = compute;
            let x = to(&random([m, k]).cast(dtype), &gpu);
            let product = |x| layer.forward(x, &AdapterSelection::Base).cast(DType::F32);
            let expected = product(x.clone()).into_data();
            // More than any device has.
            let huge = Tensor::<2>::empty([1 << 32, k], (&gpu, dtype));
            assert!(product(huge.narrow(0, 0, m)).try_into_data().is_err());
            lora_4bit::kernels::forget_device_state();
            assert_eq!(product(x).into_data(), expected);
        }
    }
}
