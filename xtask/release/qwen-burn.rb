# Made by `cargo xtask release-files`.
class QwenBurn < Formula
  desc "Serve and fine-tune Qwen-architecture models on one small GPU or a plain CPU"
  homepage "https://github.com/qwen-burn/qwen-burn"
  version "{{version}}"
  license any_of: ["MIT", "Apache-2.0"]

  on_macos do
    depends_on arch: :arm64

    on_arm do
      url "{{url aarch64-apple-darwin}}"
      sha256 "{{sha256 aarch64-apple-darwin}}"
    end
  end

  on_linux do
    on_intel do
      url "{{url x86_64-unknown-linux-gnu}}"
      sha256 "{{sha256 x86_64-unknown-linux-gnu}}"
    end
    on_arm do
      url "{{url aarch64-unknown-linux-gnu}}"
      sha256 "{{sha256 aarch64-unknown-linux-gnu}}"
    end
  end

  def install
    bin.install "bin/qwen-burn"
    (share/"qwen-burn").install Dir["share/qwen-burn/*"]
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/qwen-burn --version")
    assert_match "bundled data", shell_output("#{bin}/qwen-burn doctor || true")
  end
end
