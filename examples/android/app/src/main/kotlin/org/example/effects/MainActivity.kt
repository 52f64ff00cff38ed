package org.example.effects

import ai.onnxruntime.OrtException
import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.net.Uri
import android.os.Bundle
import android.widget.Button
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.TextView
import androidx.activity.ComponentActivity
import androidx.activity.result.PickVisualMediaRequest
import androidx.activity.result.contract.ActivityResultContracts
import androidx.lifecycle.lifecycleScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import kotlin.coroutines.EmptyCoroutineContext
import kotlin.time.measureTimedValue

/** Pick a photo, tap an effect. */
class MainActivity : ComponentActivity() {
    private val worker = Dispatchers.Default.limitedParallelism(1)
    private lateinit var editor: EffectEditor
    private var photo: Bitmap? = null

    private val picker = registerForActivityResult(ActivityResultContracts.PickVisualMedia()) { uri ->
        if (uri != null) show(uri)
    }

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.activity_main)
        findViewById<Button>(R.id.choose).setOnClickListener {
            picker.launch(PickVisualMediaRequest(ActivityResultContracts.PickVisualMedia.ImageOnly))
        }
        lifecycleScope.launch {
            editor = withContext(worker) { EffectEditor(assets, cacheDir) }
            editor.effects.forEach(::addButton)
        }
    }

    override fun onDestroy() {
        super.onDestroy()
        // Waits behind a running edit.
        if (::editor.isInitialized) worker.dispatch(EmptyCoroutineContext) { editor.close() }
    }

    private fun addButton(effect: String) {
        val button = Button(this)
        button.text = effect
        button.setOnClickListener { apply(effect) }
        findViewById<LinearLayout>(R.id.effects).addView(button)
    }

    private fun show(uri: Uri) {
        val decoded = ImageDecoder.decodeBitmap(ImageDecoder.createSource(contentResolver, uri)) { decoder, info, _ ->
            val scale = MAX_SIDE.toFloat() / maxOf(info.size.width, info.size.height, MAX_SIDE)
            val (width, height) = listOf(info.size.width, info.size.height).map { maxOf(1, (it * scale).toInt()) }
            decoder.setTargetSize(width, height)
            decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE
        }
        photo = decoded
        findViewById<ImageView>(R.id.picture).setImageBitmap(decoded)
    }

    private fun apply(effect: String) {
        val source = photo ?: return
        lifecycleScope.launch {
            val timing = findViewById<TextView>(R.id.timing)
            try {
                val (edited, elapsed) = withContext(worker) { measureTimedValue { editor.edit(source, effect) } }
                findViewById<ImageView>(R.id.picture).setImageBitmap(edited)
                timing.text = getString(R.string.timing, effect, elapsed.inWholeMilliseconds)
            } catch (error: OrtException) {
                timing.text = getString(R.string.failed, effect, error.message)
            } catch (error: IllegalArgumentException) {
                timing.text = getString(R.string.failed, effect, error.message)
            }
        }
    }

    private companion object {
        const val MAX_SIDE = 512
    }
}
