plugins {
    id("com.android.application")
    id("org.jetbrains.kotlin.android")
}

val effectsDir = layout.buildDirectory.dir("effects")
val lockFile = rootProject.layout.projectDirectory.file("e2gan.lock")

// Brings the effects into the app, verified. With e2gan.lock in the project the same bytes come every time; without
// it the channel's current versions come, and build/effects/e2gan.lock is the file to commit.
val pullEffects by tasks.registering(Exec::class) {
    val command = providers.gradleProperty("e2gan.command").get()
    val registry = providers.gradleProperty("e2gan.registry").get()
    val out = effectsDir.get().dir("effects").asFile
    workingDir = rootProject.projectDir
    commandLine(
        listOf(command, "pull", "--registry", registry, "--out", out.path, "--format", "onnx-adapter", "--log-format", "plain") +
            if (lockFile.asFile.exists()) listOf("--lock", lockFile.asFile.path) else emptyList(),
    )
}

android {
    namespace = "org.example.effects"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.example.effects"
        minSdk = 28
        targetSdk = 35
        versionCode = 1
        versionName = "1.0"
    }

    sourceSets["main"].assets.srcDir(effectsDir)
    // Weights do not compress, and adapters are mapped into memory.
    androidResources.noCompress += listOf("onnx", "onnx_adapter")

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    kotlinOptions {
        jvmTarget = "17"
    }
}

tasks.named("preBuild") {
    dependsOn(pullEffects)
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.23.0")
    implementation("androidx.activity:activity-ktx:1.9.3")
    implementation("androidx.lifecycle:lifecycle-runtime-ktx:2.8.7")
    implementation("org.jetbrains.kotlinx:kotlinx-coroutines-android:1.9.0")
}
