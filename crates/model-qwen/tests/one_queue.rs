//! A model on a device that the program chose itself uses one queue, as after `parse_device`. Alone in its process: the policy is
//! the process's.

#![allow(clippy::unwrap_used)]

use burn::tensor::Device;
use cubecl_environment::stream::{StreamPolicy, policy};
use model_qwen::{LoadOptions, QwenModel, bundled_model_dir};

#[test]
fn loading_a_model_chooses_one_queue() {
    assert_ne!(policy(), StreamPolicy::Single);
    let dir = bundled_model_dir().unwrap();
    QwenModel::load(&dir, &LoadOptions::default(), &Device::flex()).unwrap();
    assert_eq!(policy(), StreamPolicy::Single);
}
